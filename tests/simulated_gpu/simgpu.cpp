// A GPU that is simulated on the CPU, as strict about asynchrony as the hardware is allowed to be.
//
// It is torch's out-of-tree device ("PrivateUse1") under the name "simgpu". Its memory is the host's
// and its kernels are the CPU's, so a right program computes the very bits that a CPU computes. What
// a GPU punishes at random is punished here every time:
//
//   where tensors are  An operation on tensors of two devices is refused.
//   pinned memory      A copy with non_blocking=True is done when its stream, or one that waits for it,
//                      is waited for or given other work. Who reads the host's end earlier finds NaN,
//                      or what was there before; who writes it earlier corrupts the copy.
//   streams            Accesses to a device's memory carry their stream's vector clock. Two streams at
//                      the same memory, one of them writing, with no event between them, are a race:
//                      the process says so, and dies.
//   memory             Freed memory belongs to the stream that it was made for. A tensor that is let go
//                      of while another stream may use it, untold by record_stream, is a race, too.
//                      Fresh memory is NaN.
//   randomness         Each device has a generator of its own.
//   waiting            `waits` counts how often the host has waited for a device (not for shapes that
//                      depend on values, such as those of nonzero).
//
// That threads of the host wait for each other is not seen: what one of them knows of a stream is not
// known to the others, except where memory is let go of.
//
// machine.hpp (streams, events) <- memory.hpp <- device.hpp <- operations.hpp <- messages.hpp <- this,
// which tells torch of all of them.

#include "messages.hpp"

#include <ATen/autocast_mode.h>
#include <torch/library.h>

namespace simgpu {

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

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m){
#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define FLOAT32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define WIDEST(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
    AT_FORALL_LOWER_PRECISION_FP(LOWER) AT_FORALL_FP32(FLOAT32) AT_FORALL_PROMOTE(WIDEST)}

TORCH_LIBRARY_IMPL(simgpu, PrivateUse1, m) {
  m.impl("outgoing", outgoing);
  m.impl("incoming", incoming);
  m.impl("leave", leave);
}

TORCH_LIBRARY(simgpu, m) {
  m.def("outgoing(Tensor self, int ticket) -> Tensor");
  m.def("incoming(Tensor(a!) self, Tensor message, int ticket) -> ()");
  m.def("leave(Tensor self, Tensor(a!) message) -> (int, int)");
  m.def("reach(int stream, int number) -> ()", reach);
  m.def("draw_ticket() -> int", [] {
    Locked locked;
    machine().tickets.insert(machine().next_ticket);
    return machine().next_ticket++;
  });
  m.def("redeem_ticket(int ticket) -> ()", [](int64_t ticket) {
    Locked locked;
    machine().tickets.erase(ticket);
    machine().redeemed.notify_all();
  });
  m.def("seed(int device, int seed) -> ()", [](int64_t device, int64_t seed) {
    auto own = generator(static_cast<int>(device));
    own.set_current_seed(static_cast<uint64_t>(seed));
  });
  m.def("state(int device) -> Tensor",
        [](int64_t device) { return generator(static_cast<int>(device)).get_state(); });
  m.def("set_state(int device, Tensor state) -> ()", [](int64_t device, const at::Tensor& state) {
    auto own = generator(static_cast<int>(device));
    own.set_state(state);
  });
  m.def("waits() -> int", [] { return machine().waits; });
}

const bool registered = [] {
  c10::SetAllocator(SIM, &Allocator::instance(), 1);
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return true;
}();

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

}  // namespace simgpu
