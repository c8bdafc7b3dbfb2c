/*
 * Clocks that cost nothing, for measurements under User Mode Linux: LD_PRELOAD="$HOLDFAST_CLOCK" PROGRAM
 *
 * Everywhere else a program reads the time without a system call (vDSO). Under User Mode Linux each reading is one, of 15 us, and
 * a program that asks for the time often is slow for no other reason. Here the time is the processor's counter since the clock was
 * last asked for, 10 ms ago at most; the guest stays on one processor, so there is one counter.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define ASKED_AGAIN_NS 10000000
#define CALIBRATION_NS 20000000

struct reading {
    uint64_t counter, ns, told_ns;
};

static double ns_per_tick;
/* A thread's own, so that none waits for another. Told times never go back. */
static __thread struct reading readings[CLOCK_BOOTTIME + 1];

static uint64_t ask(clockid_t clock) {
    struct timespec time;
    syscall(SYS_clock_gettime, clock, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

__attribute__((constructor)) static void calibrate(void) {
    uint64_t counter = __rdtsc(), began = ask(CLOCK_MONOTONIC), now;
    do
        now = ask(CLOCK_MONOTONIC);
    while (now - began < CALIBRATION_NS);
    ns_per_tick = (double)(now - began) / (__rdtsc() - counter);
}

static uint64_t tell(clockid_t clock) {
    struct reading *last = &readings[clock];
    uint64_t ns = last->ns + (uint64_t)((__rdtsc() - last->counter) * ns_per_tick);
    if (last->ns == 0 || ns - last->ns > ASKED_AGAIN_NS) {
        ns = last->ns = ask(clock);
        last->counter = __rdtsc();
    }
    if (ns < last->told_ns)
        ns = last->told_ns;
    return last->told_ns = ns;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    if ((clock != CLOCK_MONOTONIC && clock != CLOCK_REALTIME && clock != CLOCK_BOOTTIME) || ns_per_tick == 0)
        return syscall(SYS_clock_gettime, clock, time);
    uint64_t ns = tell(clock);
    time->tv_sec = ns / 1000000000;
    time->tv_nsec = ns % 1000000000;
    return 0;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}
