// What torch asks a device: streams and events, generators, whether there is one.

#pragma once

#include "memory.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <random>

namespace simgpu {

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream as_stream(int device, size_t s) {
    return c10::Stream(c10::Stream::UNSAFE, c10::Device(SIM, device),
                       static_cast<c10::StreamId>(s));
  }
  static Event& as_event(void* event) { return *static_cast<Event*>(event); }

  c10::DeviceType type() const override { return SIM; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto old = getDevice();
    setDevice(device);
    return old;
  }
  c10::Device getDevice() const override {
    return {SIM, static_cast<c10::DeviceIndex>(current_device)};
  }
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
    Locked locked;
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
    Locked locked;
    return machine().streams[stream.id()].pending.empty();
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    Locked locked;
    machine().wait(Clock(machine().streams[stream.id()].clock));
  }
  void synchronizeDevice(const c10::DeviceIndex index) const override {
    Locked locked;
    for (auto& stream : machine().streams)
      if (stream.device == index) machine().wait(Clock(stream.clock));
  }
  void recordDataPtrOnStream(const c10::DataPtr& pointer,
                             const c10::Stream& stream) const override {
    Allocator::instance().recordStream(pointer, stream);
  }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex,
              const c10::EventFlag) const override {
    Locked locked;
    if (!*event) *event = new Event;
    const auto s = static_cast<size_t>(stream.id());
    auto when = std::make_shared<std::chrono::steady_clock::time_point>();
    const auto strike = [when] { *when = std::chrono::steady_clock::now(); };
    if (machine().streams[s].pending.empty()) {  // the stream has nothing left to do: it is now
      machine().launch(s);
      strike();
    } else {
      machine().later(s, {0, strike});
    }
    const auto& clock = machine().streams[s].clock;
    as_event(*event) = {s, clock[s], clock, when};
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (!event) return;
    Locked locked;
    const auto s = static_cast<size_t>(stream.id());
    const Event awaited = as_event(event);
    join(machine().streams[s].clock, awaited.clock);
    machine().later(s, {0, {}, std::make_pair(awaited.stream, awaited.number)});
  }
  bool queryEvent(void* event) const override {
    if (!event) return true;
    Locked locked;  // asking hurries nothing
    return machine().done(as_event(event).stream, as_event(event).number);
  }
  void synchronizeEvent(void* event) const override {
    if (!event) return;
    Locked locked;
    machine().wait(Clock(as_event(event).clock));
  }
  double elapsedTime(void* begin, void* end, const c10::DeviceIndex) const override {
    Locked locked;
    return std::chrono::duration<double, std::milli>(*as_event(end).when - *as_event(begin).when)
        .count();
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<Event*>(event);
  }
};

const at::Generator& generator(int device) {
  Locked locked;
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
  c10::DeviceIndex deviceCount() const override {
    return static_cast<c10::DeviceIndex>(num_devices());
  }
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

}  // namespace simgpu
