// What simccl.py needs: messages that leave a device, and arrive at one, as other threads bring them.

#pragma once

#include "operations.hpp"

namespace simgpu {

// What a message holds, read by the current stream, which is done with it once the ticket is redeemed.
// It may have older messages to send, so the host does not wait for it, only for what it follows.
at::Tensor outgoing(const at::Tensor& self, int64_t ticket) {
  Locked locked;
  const auto s = stream_of(self.device().index());
  const auto number = machine().later(s, {0, {}, std::nullopt, ticket});
  touch(self.storage().data(), s, number, false, "was sent");
  const Clock clock = machine().streams[s].clock;
  for (size_t other = 0; other < clock.size(); other++)
    if (other != s) machine().progress(other, clock[other]);
  return on_host(self).clone();
}

// Copies what a tensor holds to the host, once the current stream is there; says where that is.
std::tuple<int64_t, int64_t> leave(const at::Tensor& self, const at::Tensor& message) {
  Locked locked;
  const auto s = stream_of(self.device().index());
  auto run = [from = on_host(self), kept = self.storage(), to = message.detach()] {
    to.copy_(from);
  };
  const auto number = machine().later(s, {0, std::move(run)});
  touch(self.storage().data(), s, number, false, "was exchanged");
  return {static_cast<int64_t>(s), static_cast<int64_t>(number)};
}

// Lets a stream get so far. The host knows nothing of it: this is what a device does by itself.
void reach(int64_t stream, int64_t number) {
  Locked locked;
  machine().progress(static_cast<size_t>(stream), static_cast<uint64_t>(number));
}

// The current stream will write a message that is on the host once the ticket is redeemed.
void incoming(const at::Tensor& self, const at::Tensor& message, int64_t ticket) {
  Locked locked;
  const auto s = stream_of(self.device().index());
  auto run = [to = on_host(self), kept = self.storage(), from = message.detach()] {
    to.copy_(from);
  };
  const auto number = machine().later(s, {0, std::move(run), std::nullopt, ticket});
  touch(self.storage().data(), s, number, true, "received a message");
}

}  // namespace simgpu
