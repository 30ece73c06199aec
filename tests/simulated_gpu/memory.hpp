// The devices' memory and the host's that is pinned: who touches it, and when it may be had again.

#pragma once

#include "machine.hpp"

#include <c10/core/CachingDeviceAllocator.h>

#include <cstring>
#include <limits>

namespace simgpu {

struct Access {
  size_t stream;
  uint64_t number;
  std::string what;
};

struct Block {
  size_t bytes;
  int device;
  size_t home;                 // the stream that may have the memory again
  std::vector<Access> writes;  // the last one
  std::vector<Access> reads;   // the last one of each stream, since the last write
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
    die("race: stream " + std::to_string(s) + " " + what +
        ", and nothing makes it wait for stream " + std::to_string(first.stream) + ", which " +
        first.what);
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
    Locked locked;
    const auto bytes = std::max<size_t>(1, (size + ROUNDING - 1) / ROUNDING) * ROUNDING;
    void* data = std::aligned_alloc(ROUNDING, bytes);
    TORCH_CHECK(data, "simgpu: out of memory");
    std::memset(data, 0xff, bytes);
    const int device = current_device;
    const auto home = stream_of(device);  // whatever had this memory before, had it on this stream
    const auto& clock = machine().streams[home].clock;
    const auto number = home < clock.size() ? clock[home] : 0;
    blocks()[data] = {bytes, device, home, {{home, number, "had the memory before"}}, {}, {}};
    count(device, static_cast<int64_t>(bytes));
    return {data, data, &release, c10::Device(SIM, device)};
  }

  static void release(void* data) {
    Locked locked;
    const auto found = blocks().find(data);
    const auto& block = found->second;
    auto known = machine().streams[block.home].clock;
    join(known, machine().host);
    for (const auto s : block.recorded) join(known, machine().streams[s].clock);
    for (const auto* accesses : {&block.writes, &block.reads})
      for (const auto& access : *accesses)
        if (!before(access, known))
          die("freed too early: memory of stream " + std::to_string(block.home) +
              ", while stream " + std::to_string(access.stream) + " " + access.what +
              " (no record_stream, no event)");
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
  void copy_data(void* to, const void* from, size_t count) const override {
    std::memcpy(to, from, count);
  }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr& pointer, c10::Stream stream) override {
    Locked locked;
    block_of(pointer.get()).recorded.insert(static_cast<size_t>(stream.id()));
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    Locked locked;
    return stats[device];
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex device) override {
    Locked locked;
    for (auto* stat : {&stats[device].allocated_bytes[0], &stats[device].reserved_bytes[0]})
      stat->reset_peak();
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex) override {
    return {1ull << 36, 1ull << 37};
  }
};

std::map<const void*, size_t>& pinned() {
  static auto* all = new std::map<const void*, size_t>;
  return *all;
}

bool is_pinned(const void* pointer) {
  Locked locked;
  auto after = pinned().upper_bound(pointer);
  if (after == pinned().begin()) return false;
  const auto& [start, bytes] = *std::prev(after);
  return static_cast<const char*>(pointer) < static_cast<const char*>(start) + bytes;
}

struct PinnedAllocator final : c10::Allocator {
  // May wait for all that the devices have to do, as cudaHostAlloc does; so here it always does.
  c10::DataPtr allocate(size_t size) override {
    Locked locked;
    if (Locked::depth() == 1)
      for (size_t s = 0; s < machine().streams.size(); s++)
        machine().progress(s, std::numeric_limits<uint64_t>::max());
    const auto bytes = std::max<size_t>(1, (size + 63) / 64) * 64;
    void* data = std::aligned_alloc(64, bytes);
    TORCH_CHECK(data, "simgpu: out of memory");
    std::memset(data, 0xff, bytes);
    pinned()[data] = bytes;
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }
  static void release(void* data) {
    Locked locked;
    pinned().erase(data);
    std::free(data);
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t count) const override {
    std::memcpy(to, from, count);
  }
};

}  // namespace simgpu
