// What tensors are asked to do: by the CPU's kernels, on the same memory.

#pragma once

#include "device.hpp"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/CPUAllocator.h>

#include <map>
#include <set>
#include <thread>

namespace simgpu {

constexpr size_t WORKSPACE = 1 << 20;

// The same memory as a tensor of the CPU.
at::Tensor on_host(const at::Tensor& tensor) {
  c10::Storage storage(
      c10::Storage::use_byte_size_t(), tensor.storage().nbytes(),
      c10::DataPtr(tensor.storage().mutable_data(), c10::Device(c10::DeviceType::CPU)),
      c10::GetCPUAllocator(), /*resizable=*/true);
  auto host = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  host.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(),
                                                    tensor.storage_offset());
  if (tensor.is_conj()) host._set_conj(true);
  if (tensor.is_neg()) host._set_neg(true);
  return host;
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device> device, std::optional<bool>) {
  c10::DeviceGuard guard(device.value_or(c10::Device(SIM, current_device)));
  return at::detail::empty_strided_generic(size, stride, &Allocator::instance(),
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  c10::DeviceGuard guard(device.value_or(c10::Device(SIM, current_device)));
  return at::detail::empty_generic(size, &Allocator::instance(),
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

const at::Tensor& resize_(const at::Tensor& self, c10::IntArrayRef size,
                          std::optional<at::MemoryFormat>) {
  auto* impl = self.unsafeGetTensorImpl();
  const auto bytes = (self.storage_offset() + c10::multiply_integers(size)) * self.itemsize();
  if (bytes > self.storage().nbytes()) {
    auto grown = Allocator::instance().allocate(bytes);
    if (self.storage().nbytes())
      std::memcpy(grown.get(), self.storage().data(), self.storage().nbytes());
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

// What multiplies keeps a workspace for each of its threads, as cuBLAS does.
void keep_workspace(const std::string& name, int device) {
  static const std::set<std::string> multiply{"aten::mm", "aten::addmm", "aten::bmm",
                                              "aten::baddbmm"};
  static auto* kept = new std::map<std::pair<std::thread::id, int>, c10::DataPtr>;
  if (!multiply.count(name)) return;
  c10::DeviceGuard guard(c10::Device(SIM, device));
  auto& workspace = (*kept)[{std::this_thread::get_id(), device}];
  if (!workspace) workspace = Allocator::instance().allocate(WORKSPACE);
}

// Any operation: by the CPU's kernel, at once, behind what its stream has still to do.
void by_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::AutoDispatchBelowAutograd below;
  const auto& schema = op.schema();
  const auto num_arguments = schema.arguments().size();
  const auto start = stack->size() - num_arguments;
  Operation operation{schema.name()};
  std::vector<std::pair<at::Tensor, at::Tensor>> both;  // of a device, and the same on the host
  std::optional<at::Device> wanted;

  auto host = [&](const at::Tensor& tensor, bool writes) -> at::Tensor {
    if (!tensor.defined()) return tensor;
    if (tensor.device().type() != SIM) {
      const bool may_be_elsewhere = tensor.dim() == 0 || schema.name() == "aten::index" ||
                                    schema.name() == "aten::index_put_" ||
                                    schema.name() == "aten::_index_put_impl_";
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
  if (operation.device < 0)
    operation.device = wanted && wanted->index() >= 0 ? wanted->index() : current_device;

  Locked locked;
  keep_workspace(operation.what, operation.device);
  operation.launch();
  {
    std::optional<Randomness> own;
    if (op.hasTag(at::Tag::nondeterministic_seeded)) own.emplace(operation.device);
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }

  const auto number = [&] {
    return machine().streams[stream_of(operation.device)].clock[stream_of(operation.device)];
  };
  auto on_device = [&](const at::Tensor& result) -> at::Tensor {
    if (!result.defined()) return result;
    for (const auto& [tensor, same] : both) {
      if (result.unsafeGetTensorImpl() == same.unsafeGetTensorImpl()) {
        if (result.sizes() != tensor.sizes()) {  // an output that the kernel has resized
          resize_(tensor, result.sizes(), std::nullopt);
          on_host(tensor).copy_(result);
        }
        return tensor;
      }
      if (result.storage().data() == same.storage().data() && result.storage().nbytes())
        return at::as_strided(tensor, result.sizes(), result.strides(), result.storage_offset());
    }
    auto tensor = empty_strided(result.sizes(), result.strides(), result.scalar_type(),
                                std::nullopt, c10::Device(SIM, operation.device), std::nullopt);
    on_host(tensor).copy_(result);
    if (tensor.storage().nbytes())
      touch(tensor.storage().data(), stream_of(operation.device), number(), true,
            "made the result of " + schema.name());
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
  Operation operation{down ? "was copied to the host"
                      : up ? "was copied to from the host"
                           : "aten::copy_"};
  Locked locked;
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
  const bool pinned_end = host_end.numel() && is_pinned(host_end.const_data_ptr());
  if (up && non_blocking && !pinned_end) from = from.clone();  // what is not pinned is read at once
  auto run = [from = down ? on_host(from) : from.detach(), to = up ? on_host(to) : to.detach(),
              kept = device_end.storage()] { to.copy_(from); };
  if (non_blocking && host_end.numel() && (up || pinned_end)) {
    const auto number = machine().later(s, {0, std::move(run)});
    touch(device_end.storage().data(), s, number, up, operation.what);
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
  Locked locked;
  operation.launch();
  machine().wait(Clock(machine().streams[stream_of(operation.device)].clock));
  return at::_local_scalar_dense(on_host(self));
}

at::Tensor strided(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride,
                   std::optional<int64_t> offset) {
  auto view = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(self.storage()), self.key_set(), self.dtype());
  view.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride,
                                                    offset.value_or(self.storage_offset()));
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
  torch::jit::Stack stack{input,    weight,     bias,           stride, padding,
                          dilation, transposed, output_padding, groups};
  by_cpu(op, &stack);
  return stack.at(0).toTensor();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight,
    c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
    c10::IntArrayRef output_padding, int64_t groups, std::array<bool, 3> mask) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("aten::convolution_backward", "");
  c10::List<bool> wanted{mask[0], mask[1], mask[2]};
  const std::vector<int64_t> bias_sizes{grad.size(1)};
  torch::jit::Stack stack{grad,     input,      weight,         bias_sizes, stride, padding,
                          dilation, transposed, output_padding, groups,     wanted};
  by_cpu(op, &stack);
  return {stack.at(0).toTensor(), stack.at(1).toTensor(), stack.at(2).toTensor()};
}

}  // namespace simgpu
