// A GPU that is simulated on the CPU, as strict about asynchrony as the hardware is allowed to be.
//
// It is torch's out-of-tree device ("PrivateUse1") under the name "simgpu". Its memory is host memory
// and its kernels are the CPU's, so a correct program computes the very bits that a CPU computes. What
// a GPU punishes at random is punished here every time:
//
//   where tensors are   An operation on tensors of two devices is refused.
//   copies to and from  A copy with non_blocking=True from or to pinned memory is done as late as it may
//   pinned memory       be: when its stream is next waited for or given other work. Who reads the host's
//                       end earlier finds NaN, who writes it earlier corrupts the copy.
//   streams             Every access to a device's memory carries its stream's vector clock. Two streams
//                       that touch the same memory, one of them writing, without an event between them
//                       are a race: the process says so, and dies.
//   memory              Freed memory belongs to the stream that it was made for. A tensor that is let go
//                       of while another stream may still use it, and was not told of by record_stream,
//                       is a race, too. Fresh memory is NaN.
//   randomness          Each device has a generator of its own.
//   waiting             `simgpu::waits` counts how often the host has waited for a device.
//
// That threads of the host wait for each other is not seen here: what one of them knows of a stream is
// not known to the others, except where memory is let go of.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/EmptyTensor.h>
#include <ATen/native/Resize.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <set>

namespace {

using Clock = std::vector<uint64_t>; // how much of every stream's work has been done before

constexpr auto SIM = c10::DeviceType::PrivateUse1;
constexpr size_t ROUNDING = 512; // of sizes, as CUDA's caching allocator does

int num_devices() {
  static const int count = [] {
    const char* text = std::getenv("SIMGPU_DEVICES");
    return text ? std::atoi(text) : 1;
  }();
  return count;
}

[[noreturn]] void die(const std::string& what) {
  std::fprintf(stderr, "simgpu: %s\n", what.c_str());
  std::fflush(stderr);
  std::_Exit(86);
}

void join(Clock& clock, const Clock& other) {
  if (clock.size() < other.size()) clock.resize(other.size());
  for (size_t i = 0; i < other.size(); i++) clock[i] = std::max(clock[i], other[i]);
}

// ---------------------------------------------------------------------------------- streams, events

struct Work {
  std::function<void()> run;
  uint64_t number;
};

struct Stream {
  int device;
  Clock clock;
  std::deque<Work> pending; // copies, and waits for other streams, that nothing has asked for yet
};

struct Event {
  size_t stream = 0;
  uint64_t number = 0;
  Clock clock;
  std::shared_ptr<std::chrono::steady_clock::time_point> when;
};

std::recursive_mutex& lock() {
  static auto* mutex = new std::recursive_mutex; // never destroyed: threads may outlive main
  return *mutex;
}

using Locked = std::lock_guard<std::recursive_mutex>;

thread_local Clock this_thread; // what it has waited for

struct Machine {
  std::deque<Stream> streams; // the first ones are the devices' default streams
  Clock host; // what any thread has waited for
  int64_t waits = 0;

  Machine() {
    for (int device = 0; device < num_devices(); device++) streams.push_back({device, {}, {}});
  }

  // The stream's next piece of work: what the host has waited for comes before it.
  uint64_t launch(size_t s) {
    auto& clock = streams[s].clock;
    join(clock, this_thread);
    if (clock.size() <= s) clock.resize(s + 1);
    return ++clock[s];
  }

  void later(size_t s, std::function<void()> run) {
    streams[s].pending.push_back({std::move(run), launch(s)});
  }

  void progress(size_t s, uint64_t number) {
    auto& pending = streams[s].pending;
    while (!pending.empty() && pending.front().number <= number) {
      auto run = std::move(pending.front().run);
      pending.pop_front();
      run();
    }
  }

  void wait(const Clock& clock) {
    for (size_t s = 0; s < clock.size(); s++) progress(s, clock[s]);
    join(host, clock);
    join(this_thread, clock);
    waits++;
  }
};

Machine& machine() {
  static auto* it = new Machine;
  return *it;
}

thread_local int current_device = 0;
thread_local std::map<int, size_t> current_streams;

size_t stream_of(int device) {
  auto found = current_streams.find(device);
  return found == current_streams.end() ? device : found->second;
}

// ------------------------------------------------------------------------------------------- memory

struct Access {
  size_t stream;
  uint64_t number;
  std::string what;
};

struct Block {
  size_t bytes;
  int device;
  size_t home; // the stream that may have the memory again
  std::vector<Access> writes; // the last one
  std::vector<Access> reads; // the last one of each stream, since the last write
  std::set<size_t> recorded;
};

std::map<const void*, Block>& blocks() {
  static auto* all = new std::map<const void*, Block>;
  return *all;
}

Block& block_of(const void* pointer) {
  auto after = blocks().upper_bound(pointer);
  TORCH_CHECK(after != blocks().begin(), "simgpu: not a device's memory");
  return std::prev(after)->second;
}

bool before(const Access& access, const Clock& clock) {
  return access.stream < clock.size() && access.number <= clock[access.stream];
}

void refuse_race(const Access& first, size_t s, const std::string& what) {
  if (!before(first, machine().streams[s].clock))
    die("race: stream " + std::to_string(s) + " " + what + ", and nothing makes it wait for stream " +
        std::to_string(first.stream) + ", which " + first.what);
}

void touch(const void* pointer, size_t s, uint64_t number, bool writes, const std::string& what) {
  auto& block = block_of(pointer);
  for (auto& write : block.writes) refuse_race(write, s, what);
  if (writes) {
    for (auto& read : block.reads) refuse_race(read, s, what);
    block.reads.clear();
    block.writes = {{s, number, what}};
    return;
  }
  for (auto& read : block.reads)
    if (read.stream == s) {
      read = {s, number, what};
      return;
    }
  block.reads.push_back({s, number, what});
}

struct Allocator final : c10::DeviceAllocator {
  std::map<int, c10::CachingDeviceAllocator::DeviceStats> stats;

  c10::DataPtr allocate(size_t size) override {
    Locked locked(lock());
    const auto bytes = std::max<size_t>(1, (size + ROUNDING - 1) / ROUNDING) * ROUNDING;
    void* data = std::aligned_alloc(ROUNDING, bytes);
    TORCH_CHECK(data, "simgpu: out of memory");
    std::memset(data, 0xff, bytes);
    const int device = current_device;
    const auto home = stream_of(device); // whatever had this memory before, had it on this stream
    const auto& clock = machine().streams[home].clock;
    const auto number = home < clock.size() ? clock[home] : 0;
    blocks()[data] = {bytes, device, home, {{home, number, "had the memory before"}}, {}, {}};
    count(device, static_cast<int64_t>(bytes));
    return {data, data, &release, c10::Device(SIM, device)};
  }

  static void release(void* data) {
    Locked locked(lock());
    const auto found = blocks().find(data);
    const auto& block = found->second;
    auto known = machine().streams[block.home].clock;
    join(known, machine().host);
    for (const auto s : block.recorded) join(known, machine().streams[s].clock);
    for (const auto* accesses : {&block.writes, &block.reads})
      for (const auto& access : *accesses)
        if (!before(access, known))
          die("freed too early: memory of stream " + std::to_string(block.home) + ", while stream " +
              std::to_string(access.stream) + " " + access.what + " (no record_stream, no event)");
    instance().count(block.device, -static_cast<int64_t>(block.bytes));
    blocks().erase(found);
    std::free(data);
  }

  static Allocator& instance() {
    static auto* it = new Allocator;
    return *it;
  }

  void count(int device, int64_t bytes) {
    for (auto* stat : {&stats[device].allocated_bytes[0], &stats[device].reserved_bytes[0],
                       &stats[device].active_bytes[0], &stats[device].requested_bytes[0]})
      bytes > 0 ? stat->increase(bytes) : stat->decrease(-bytes);
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t count) const override { std::memcpy(to, from, count); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr& pointer, c10::Stream stream) override {
    Locked locked(lock());
    block_of(pointer.get()).recorded.insert(static_cast<size_t>(stream.id()));
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    Locked locked(lock());
    return stats[device];
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex device) override {
    Locked locked(lock());
    for (auto* stat : {&stats[device].allocated_bytes[0], &stats[device].reserved_bytes[0]})
      stat->reset_peak();
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex) override { return {1ull << 36, 1ull << 37}; }
};

std::map<const void*, size_t>& pinned() {
  static auto* all = new std::map<const void*, size_t>;
  return *all;
}

bool is_pinned(const void* pointer) {
  Locked locked(lock());
  auto after = pinned().upper_bound(pointer);
  if (after == pinned().begin()) return false;
  const auto& [start, bytes] = *std::prev(after);
  return static_cast<const char*>(pointer) < static_cast<const char*>(start) + bytes;
}

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    Locked locked(lock());
    const auto bytes = std::max<size_t>(1, (size + 63) / 64) * 64;
    void* data = std::aligned_alloc(64, bytes);
    TORCH_CHECK(data, "simgpu: out of memory");
    std::memset(data, 0xff, bytes);
    pinned()[data] = bytes;
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }
  static void release(void* data) {
    Locked locked(lock());
    pinned().erase(data);
    std::free(data);
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t count) const override { std::memcpy(to, from, count); }
};

// ------------------------------------------------------------------------- what torch asks a device

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream as_stream(int device, size_t s) {
    return c10::Stream(c10::Stream::UNSAFE, c10::Device(SIM, device), static_cast<c10::StreamId>(s));
  }
  static Event& as_event(void* event) { return *static_cast<Event*>(event); }

  c10::DeviceType type() const override { return SIM; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto old = getDevice();
    setDevice(device);
    return old;
  }
  c10::Device getDevice() const override { return {SIM, static_cast<c10::DeviceIndex>(current_device)}; }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() < num_devices(), "simgpu: no such device: ", device);
    uncheckedSetDevice(device);
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.index() >= 0) current_device = device.index();
  }
  c10::DeviceIndex deviceCount() const noexcept override {
    return static_cast<c10::DeviceIndex>(num_devices());
  }
  c10::Stream getStream(c10::Device device) const override {
    const int index = device.index() < 0 ? current_device : device.index();
    return as_stream(index, stream_of(index));
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return as_stream(device.index(), device.index());
  }
  c10::Stream getNewStream(c10::Device device, int) const override {
    Locked locked(lock());
    const int index = device.index() < 0 ? current_device : device.index();
    machine().streams.push_back({index, {}, {}});
    return as_stream(index, machine().streams.size() - 1);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return getNewStream(device, 0);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const auto old = getStream(stream.device());
    current_streams[stream.device_index()] = static_cast<size_t>(stream.id());
    return old;
  }
  bool queryStream(const c10::Stream& stream) const override {
    Locked locked(lock());
    return machine().streams[stream.id()].pending.empty();
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    Locked locked(lock());
    machine().wait(Clock(machine().streams[stream.id()].clock));
  }
  void synchronizeDevice(const c10::DeviceIndex index) const override {
    Locked locked(lock());
    for (auto& stream : machine().streams)
      if (stream.device == index) machine().wait(Clock(stream.clock));
  }
  void recordDataPtrOnStream(const c10::DataPtr& pointer, const c10::Stream& stream) const override {
    Allocator::instance().recordStream(pointer, stream);
  }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex, const c10::EventFlag)
      const override {
    Locked locked(lock());
    if (!*event) *event = new Event;
    const auto s = static_cast<size_t>(stream.id());
    auto when = std::make_shared<std::chrono::steady_clock::time_point>();
    machine().later(s, [when] { *when = std::chrono::steady_clock::now(); });
    const auto& clock = machine().streams[s].clock;
    as_event(*event) = {s, clock[s], clock, when};
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (!event) return;
    Locked locked(lock());
    const auto s = static_cast<size_t>(stream.id());
    const Event awaited = as_event(event);
    join(machine().streams[s].clock, awaited.clock);
    machine().later(s, [awaited] { machine().progress(awaited.stream, awaited.number); });
  }
  bool queryEvent(void* event) const override {
    if (!event) return true;
    Locked locked(lock()); // who asks often enough sees it done
    auto& pending = machine().streams[as_event(event).stream].pending;
    if (pending.empty() || pending.front().number > as_event(event).number) return true;
    machine().progress(as_event(event).stream, pending.front().number);
    return false;
  }
  void synchronizeEvent(void* event) const override {
    if (!event) return;
    Locked locked(lock());
    machine().wait(Clock(as_event(event).clock));
  }
  double elapsedTime(void* begin, void* end, const c10::DeviceIndex) const override {
    Locked locked(lock());
    return std::chrono::duration<double, std::milli>(*as_event(end).when - *as_event(begin).when).count();
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<Event*>(event);
  }
};

const at::Generator& generator(int device) {
  Locked locked(lock());
  static auto* all = new std::map<int, at::Generator>;
  auto found = all->find(device);
  if (found == all->end())
    found = all->emplace(device, at::detail::createCPUGenerator(std::random_device{}())).first;
  return found->second;
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return num_devices() > 0; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return static_cast<c10::DeviceIndex>(num_devices()); }
  void setCurrentDevice(c10::DeviceIndex index) const override { Guard().setDevice({SIM, index}); }
  c10::DeviceIndex getCurrentDevice() const override {
    return static_cast<c10::DeviceIndex>(current_device);
  }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    return Guard().exchangeDevice({SIM, index}).index();
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return exchangeDevice(index);
  }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    static auto* it = new PinnedAllocator;
    return it;
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override {
    return generator(index < 0 ? current_device : index);
  }
};

// --------------------------------------------------------------------------------------- operations

// The same memory as a tensor of the CPU.
at::Tensor on_host(const at::Tensor& tensor) {
  c10::Storage storage(
      c10::Storage::use_byte_size_t(), tensor.storage().nbytes(),
      c10::DataPtr(tensor.storage().mutable_data(), c10::Device(c10::DeviceType::CPU)),
      c10::GetCPUAllocator(), /*resizable=*/true);
  auto host = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  host.unsafeGetTensorImpl()->set_sizes_and_strides(
      tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.is_conj()) host._set_conj(true);
  if (tensor.is_neg()) host._set_neg(true);
  return host;
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device> device, std::optional<bool>) {
  c10::DeviceGuard guard(device.value_or(c10::Device(SIM, current_device)));
  return at::detail::empty_strided_generic(
      size, stride, &Allocator::instance(), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
      c10::dtype_or_default(dtype));
}

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device> device, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  c10::DeviceGuard guard(device.value_or(c10::Device(SIM, current_device)));
  return at::detail::empty_generic(
      size, &Allocator::instance(), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
      c10::dtype_or_default(dtype), format);
}

const at::Tensor& resize_(const at::Tensor& self, c10::IntArrayRef size, std::optional<at::MemoryFormat>) {
  auto* impl = self.unsafeGetTensorImpl();
  const auto bytes = (self.storage_offset() + c10::multiply_integers(size)) * self.itemsize();
  if (bytes > self.storage().nbytes()) {
    auto grown = Allocator::instance().allocate(bytes);
    if (self.storage().nbytes()) std::memcpy(grown.get(), self.storage().data(), self.storage().nbytes());
    self.storage().set_data_ptr_noswap(std::move(grown));
    self.storage().set_nbytes(bytes);
  }
  impl->set_sizes_contiguous(size);
  return self;
}

// One operation: what it reads and writes, on the current stream of its device.
struct Operation {
  std::string what;
  int device = -1;
  std::vector<std::pair<at::Tensor, bool>> accesses;

  void uses(const at::Tensor& tensor, bool writes) {
    if (device >= 0 && device != tensor.device().index())
      TORCH_CHECK(false, "simgpu: ", what, " got tensors of devices ", device, " and ",
                  tensor.device().index());
    device = tensor.device().index();
    accesses.emplace_back(tensor, writes);
  }

  // To be called with the lock held, before the work is done.
  void launch() const {
    const auto s = stream_of(device);
    const auto number = machine().launch(s);
    machine().progress(s, number);
    for (const auto& [tensor, writes] : accesses)
      if (tensor.storage().nbytes()) touch(tensor.storage().data(), s, number, writes, what);
  }
};

// While it lives, the CPU's generator stands where the device's does.
struct Randomness {
  at::Generator cpu = at::detail::getDefaultCPUGenerator();
  at::Generator own;
  at::Tensor kept = cpu.get_state();

  explicit Randomness(int device) : own(generator(device)) { cpu.set_state(own.get_state()); }
  ~Randomness() {
    own.set_state(cpu.get_state());
    cpu.set_state(kept);
  }
};

// Any operation: by the CPU's kernel, at once, behind what its stream has still to do.
void by_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::AutoDispatchBelowAutograd below;
  const auto& schema = op.schema();
  const auto num_arguments = schema.arguments().size();
  const auto start = stack->size() - num_arguments;
  Operation operation{schema.name()};
  std::vector<std::pair<at::Tensor, at::Tensor>> both; // of a device, and the same on the host
  std::optional<at::Device> wanted;

  auto host = [&](const at::Tensor& tensor, bool writes) -> at::Tensor {
    if (!tensor.defined()) return tensor;
    if (tensor.device().type() != SIM) {
      const bool may_be_elsewhere = tensor.dim() == 0 || schema.name() == "aten::index" ||
          schema.name() == "aten::index_put_" || schema.name() == "aten::_index_put_impl_";
      TORCH_CHECK(may_be_elsewhere, "simgpu: ", schema.name(), " got a tensor on ", tensor.device(),
                  " of shape ", tensor.sizes(), " beside tensors on a device");
      return tensor;
    }
    operation.uses(tensor, writes);
    both.emplace_back(tensor, on_host(tensor));
    return both.back().second;
  };

  for (size_t i = 0; i < num_arguments; i++) {
    auto& value = (*stack)[start + i];
    const auto* alias = schema.arguments()[i].alias_info();
    const bool writes = alias && alias->isWrite();
    if (value.isTensor()) {
      value = host(value.toTensor(), writes);
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> list;
      for (const auto& tensor : value.toTensorVector()) list.push_back(host(tensor, writes));
      value = std::move(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList())
        list.push_back(tensor ? std::optional<at::Tensor>(host(*tensor, writes)) : std::nullopt);
      value = std::move(list);
    } else if (value.isDevice()) {
      wanted = value.toDevice();
      value = c10::Device(c10::DeviceType::CPU);
    }
  }
  if (operation.device < 0) operation.device = wanted && wanted->index() >= 0 ? wanted->index() : current_device;

  Locked locked(lock());
  operation.launch();
  {
    std::optional<Randomness> own;
    if (op.hasTag(at::Tag::nondeterministic_seeded)) own.emplace(operation.device);
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }

  const auto number = [&] { return machine().streams[stream_of(operation.device)].clock[stream_of(operation.device)]; };
  auto on_device = [&](const at::Tensor& result) -> at::Tensor {
    if (!result.defined()) return result;
    for (const auto& [tensor, same] : both) {
      if (result.unsafeGetTensorImpl() == same.unsafeGetTensorImpl()) {
        if (result.sizes() != tensor.sizes()) { // an output that the kernel has resized
          resize_(tensor, result.sizes(), std::nullopt);
          on_host(tensor).copy_(result);
        }
        return tensor;
      }
      if (result.storage().data() == same.storage().data() && result.storage().nbytes())
        return at::as_strided(tensor, result.sizes(), result.strides(), result.storage_offset());
    }
    auto tensor = empty_strided(result.sizes(), result.strides(), result.scalar_type(), std::nullopt,
                                c10::Device(SIM, operation.device), std::nullopt);
    on_host(tensor).copy_(result);
    if (tensor.storage().nbytes())
      touch(tensor.storage().data(), stream_of(operation.device), number(), true, "made the result of " + schema.name());
    return tensor;
  };
  const auto num_returns = schema.returns().size();
  for (size_t i = stack->size() - num_returns; i < stack->size(); i++) {
    auto& value = (*stack)[i];
    if (value.isTensor()) {
      value = on_device(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> list;
      for (const auto& tensor : value.toTensorVector()) list.push_back(on_device(tensor));
      value = std::move(list);
    }
  }
}

// Between any two places, the device's end on the current stream.
at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool non_blocking) {
  at::AutoDispatchBelowAutograd below;
  const bool down = to.device().type() != SIM;
  const bool up = self.device().type() != SIM;
  auto from = self.expand_as(to);
  Operation operation{down ? "was copied to the host" : up ? "was copied to from the host" : "aten::copy_"};
  Locked locked(lock());
  if (!down && !up) {
    // between two devices each must wait for the other; here the host does
    if (self.device() != to.device())
      for (const auto& tensor : {self, to})
        machine().wait(Clock(machine().streams[stream_of(tensor.device().index())].clock));
    operation.device = to.device().index();
    operation.accesses = {{self, false}, {to, true}};
    operation.launch();
    on_host(to).copy_(on_host(from));
    return to;
  }
  const auto& device_end = down ? self : to;
  const auto& host_end = down ? to : from;
  operation.uses(device_end, up);
  const auto s = stream_of(operation.device);
  // Without Python's own tensors: who lets go of those needs its lock.
  auto run = [from = down ? on_host(from) : from.detach(), to = up ? on_host(to) : to.detach(),
              kept = device_end.storage()] { to.copy_(from); };
  if (non_blocking && host_end.numel() && is_pinned(host_end.const_data_ptr())) {
    const auto number = machine().launch(s);
    touch(device_end.storage().data(), s, number, up, operation.what);
    machine().streams[s].pending.push_back({std::move(run), number});
    return to;
  }
  operation.launch();
  run();
  machine().wait(Clock(machine().streams[s].clock));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
  to.resize_(self.sizes());
  return copy_from(self, to, false);
}

at::Scalar local_scalar_dense(const at::Tensor& self) {
  Operation operation{"was read by the host"};
  operation.uses(self, false);
  Locked locked(lock());
  operation.launch();
  machine().wait(Clock(machine().streams[stream_of(operation.device)].clock));
  return at::_local_scalar_dense(on_host(self));
}

at::Tensor strided(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride,
                      std::optional<int64_t> offset) {
  auto view = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(self.storage()), self.key_set(), self.dtype());
  view.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset.value_or(self.storage_offset()));
  return view;
}

at::Tensor reshape_alias(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride) {
  return strided(self, size, stride, std::nullopt);
}

at::Tensor view(const at::Tensor& self, c10::IntArrayRef size) {
  const auto viewed = on_host(self).view(size);
  return strided(self, viewed.sizes(), viewed.strides(), std::nullopt);
}

at::Tensor unfold(const at::Tensor& self, int64_t dim, int64_t size, int64_t step) {
  const auto viewed = on_host(self).unfold(dim, size, step);
  return strided(self, viewed.sizes(), viewed.strides(), viewed.storage_offset());
}

at::Tensor& set_all(at::Tensor& self, at::Storage storage, int64_t offset, c10::IntArrayRef size,
                    c10::IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  if (stride.empty() && !size.empty()) {
    impl->set_storage_offset(offset);
    impl->set_sizes_contiguous(size);
  } else {
    impl->set_sizes_and_strides(size, stride, offset);
  }
  return self;
}

at::Tensor& set_storage(at::Tensor& self, at::Storage storage) {
  const auto count = static_cast<int64_t>(storage.nbytes() / self.itemsize());
  return set_all(self, std::move(storage), 0, {count}, {1});
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return set_all(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

void record_stream(at::Tensor& self, c10::Stream stream) {
  Allocator::instance().recordStream(self.storage().data_ptr(), stream);
}

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, c10::IntArrayRef stride,
                       c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
                       c10::IntArrayRef output_padding, int64_t groups) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::convolution", "");
  torch::jit::Stack stack{input, weight, bias, stride, padding, dilation, transposed, output_padding, groups};
  by_cpu(op, &stack);
  return stack.at(0).toTensor();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight, c10::IntArrayRef stride,
    c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
    c10::IntArrayRef output_padding, int64_t groups, std::array<bool, 3> mask) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::convolution_backward", "");
  c10::List<bool> wanted{mask[0], mask[1], mask[2]};
  const std::vector<int64_t> bias_sizes{grad.size(1)};
  torch::jit::Stack stack{grad, input, weight, bias_sizes, stride, padding, dilation,
                          transposed, output_padding, groups, wanted};
  by_cpu(op, &stack);
  return {stack.at(0).toTensor(), stack.at(1).toTensor(), stack.at(2).toTensor()};
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar_dense);
  m.impl("as_strided", strided);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("view", view);
  m.impl("unfold", unfold);
  m.impl("resize_", resize_);
  m.impl("set_.source_Storage_storage_offset", set_all);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("record_stream", record_stream);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
  for (const auto* name : {"native_layer_norm", "native_layer_norm_backward"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&by_cpu>());
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_cpu>());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define FLOAT32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define WIDEST(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
  AT_FORALL_FP32(FLOAT32)
  AT_FORALL_PROMOTE(WIDEST)
}

// ------------------------------------------------------------- for messages between devices (simccl)

// Tickets for what other threads bring. A lock of their own: a stream may wait for them.
struct Tickets {
  std::mutex mutex;
  std::condition_variable changed;
  std::set<int64_t> open;
  int64_t next = 0;

  static Tickets& all() {
    static auto* it = new Tickets;
    return *it;
  }
  int64_t draw() {
    std::lock_guard<std::mutex> locked(mutex);
    open.insert(next);
    return next++;
  }
  void redeem(int64_t ticket) {
    std::lock_guard<std::mutex> locked(mutex);
    open.erase(ticket);
    changed.notify_all();
  }
  void wait(int64_t ticket) {
    std::unique_lock<std::mutex> locked(mutex);
    changed.wait(locked, [&] { return !open.count(ticket); });
  }
};

// What a message holds, read by the current stream.
at::Tensor outgoing(const at::Tensor& self) {
  Operation operation{"was sent"};
  operation.uses(self, false);
  Locked locked(lock());
  operation.launch();
  return on_host(self).clone();
}

// The current stream will write a message that is on the host once the ticket is redeemed.
void incoming(const at::Tensor& self, const at::Tensor& message, int64_t ticket) {
  Locked locked(lock());
  const auto s = stream_of(self.device().index());
  const auto number = machine().launch(s);
  touch(self.storage().data(), s, number, true, "received a message");
  auto run = [to = on_host(self), kept = self.storage(), from = message.detach(), ticket] {
    Tickets::all().wait(ticket);
    to.copy_(from);
  };
  machine().streams[s].pending.push_back({std::move(run), number});
}

TORCH_LIBRARY_IMPL(simgpu, PrivateUse1, m) {
  m.impl("outgoing", outgoing);
  m.impl("incoming", incoming);
}

TORCH_LIBRARY(simgpu, m) {
  m.def("outgoing(Tensor self) -> Tensor");
  m.def("incoming(Tensor(a!) self, Tensor message, int ticket) -> ()");
  m.def("draw_ticket() -> int", [] { return Tickets::all().draw(); });
  m.def("redeem_ticket(int ticket) -> ()", [](int64_t ticket) { Tickets::all().redeem(ticket); });
  m.def("waits() -> int", [] { return machine().waits; });
}

const bool registered = [] {
  c10::SetAllocator(SIM, &Allocator::instance(), 1);
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return true;
}();

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

} // namespace
