// Threads that run one function together and meet at barriers inside it. A step has some 200 phases of tens of
// microseconds; a fork and join of an OpenMP region for each would cost more than the barriers here.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

class Pool {
 public:
  explicit Pool(int threads) : size_(threads) {
    for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i); });
  }

  ~Pool() {
    stop_ = true;
    job_.fetch_add(1);
    job_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  int size() const { return size_; }

  // Call f(thread) on every thread, this one being number 0; returns when all have.
  void run(const std::function<void(int)>& f) {
    function_ = &f;
    job_.fetch_add(1, std::memory_order_release);
    job_.notify_all();
    f(0);
    barrier();
  }

  // Wait until every thread of the running function is here.
  void barrier() {
    if (size_ == 1) return;
    const int round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; spins++) wait(spins);
  }

 private:
  // Spin, for the others are at most a few microseconds away; but yield where they were put off the processor.
  static void wait(int spins) {
    if (spins < 2000)
      relax();
    else
      std::this_thread::yield();
  }

  void work(int thread) {
    for (int seen = 0;; seen++) {
      for (int spins = 0; job_.load(std::memory_order_acquire) == seen && spins < 20000; spins++) relax();
      job_.wait(seen, std::memory_order_acquire);  // asleep until the next step
      if (stop_) return;
      (*function_)(thread);
      barrier();
    }
  }

  const int size_;
  std::vector<std::thread> workers_;
  const std::function<void(int)>* function_ = nullptr;
  std::atomic<int> job_{0}, arrived_{0}, round_{0};
  std::atomic<bool> stop_{false};
};

// Of one range of work: what of it is taken. A cache line each.
struct alignas(64) Taken { std::atomic<long> count{0}; };

// Share out 0 .. count - 1 among threads that all call this, `thread` being the caller: f(first, end) for pieces of at
// most `take`. taken: one for each thread, zero before.
// Each thread has a range of its own, the same whenever as much is shared out, so that what it wrote in one phase it
// reads in the next from its own cache: a line of another core's takes a fifth of a microsecond. Who has finished takes
// from the others' ranges.
template <class F>
void share_out(long count, long take, int thread, int threads, Taken* taken, F&& f) {
  for (int i = 0; i < threads; i++) {
    const int owner = (thread + i) % threads;
    const long begin = count * owner / threads, end = count * (owner + 1) / threads;
    for (long first; (first = begin + taken[owner].count.fetch_add(take, std::memory_order_relaxed)) < end;)
      f(first, first + take < end ? first + take : end);
  }
}

}  // namespace
