// What the devices do and when: streams, events, and who waits for whom.

#pragma once

#include <c10/core/Device.h>
#include <c10/util/Exception.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

extern "C" {  // of Python's stable interface, whose headers not every machine has
int PyGILState_Check();
void* PyEval_SaveThread();
void PyEval_RestoreThread(void*);
}

namespace simgpu {

using Clock = std::vector<uint64_t>;  // how much of every stream's work has been done before

constexpr auto SIM = c10::DeviceType::PrivateUse1;
constexpr size_t ROUNDING = 512;  // of sizes, as CUDA's caching allocator does

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

struct Work {
  uint64_t number;
  std::function<void()> run;
  std::optional<std::pair<size_t, uint64_t>> after = std::nullopt;  // of another stream
  std::optional<int64_t> ticket = std::nullopt;                     // that another thread redeems
};

struct Stream {
  int device;
  Clock clock;
  std::deque<Work> pending;  // copies, and waits for other streams, that nothing has asked for yet
};

struct Event {
  size_t stream = 0;
  uint64_t number = 0;
  Clock clock;
  std::shared_ptr<std::chrono::steady_clock::time_point> when;
};

// One lock for everything. Never destroyed: threads may outlive main. Nobody waits for it with
// Python's lock in hand: who has it may need that one, to count who refers to a tensor of Python's.
struct Locked {
  static std::recursive_mutex& mutex() {
    static auto* it = new std::recursive_mutex;
    return *it;
  }
  static int& depth() {
    static thread_local int it = 0;
    return it;
  }
  Locked() {
    if (!mutex().try_lock()) {
      void* python = PyGILState_Check() ? PyEval_SaveThread() : nullptr;
      mutex().lock();
      if (python) PyEval_RestoreThread(python);
    }
    depth()++;
  }
  Locked(const Locked&) = delete;
  ~Locked() {
    depth()--;
    mutex().unlock();
  }
};

thread_local Clock this_thread;  // what it has waited for

struct Machine {
  std::deque<Stream> streams;  // the first ones are the devices' default streams
  Clock host;                  // what any thread has waited for
  int64_t waits = 0;
  std::set<int64_t> tickets;  // not redeemed yet
  int64_t next_ticket = 0;
  std::condition_variable_any redeemed;

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

  uint64_t later(size_t s, Work work) {
    work.number = launch(s);
    streams[s].pending.push_back(std::move(work));
    return streams[s].clock[s];
  }

  bool done(size_t s, uint64_t number) const {
    return streams[s].pending.empty() || streams[s].pending.front().number > number;
  }

  // Other threads may make progress while this one waits for a ticket.
  void progress(size_t s, uint64_t number) {
    while (!done(s, number)) {
      auto& next = streams[s].pending.front();
      if (next.ticket && tickets.count(*next.ticket)) {
        if (Locked::depth() != 1) die("a wait for a message inside of an operation");
        redeemed.wait(Locked::mutex());
      } else if (next.after && !done(next.after->first, next.after->second)) {
        const auto after = *next.after;
        progress(after.first, after.second);
      } else {
        const auto run = std::move(next.run);
        streams[s].pending.pop_front();
        if (run) run();
      }
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

}  // namespace simgpu
