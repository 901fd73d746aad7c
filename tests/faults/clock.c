/* The wall clock as a step of NTP's leaves it: set back or forward at once, for the process that this is preloaded into.

   The offset in seconds stands in the file that WALL_CLOCK_OFFSET names, as 8 bytes that the test may change at any moment. The
   monotonic clock goes on as it is. A wait until a moment of the wall clock lasts as long as the kernel would let it: after a
   step of an hour back, an hour longer. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>

#define SLICE_NS 20000000L
#define SECOND_NS 1000000000L
#define LEAST_WALL_S 1000000000L /* a deadline before 2001 is one of the monotonic clock */

typedef int clock_fn(clockid_t, struct timespec *);
typedef int wait_fn(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
typedef int c11_wait_fn(cnd_t *, mtx_t *, const struct timespec *);

static volatile const int64_t *offset_s;
static clock_fn *real_clock;
static wait_fn *real_wait;
static c11_wait_fn *real_c11_wait;

__attribute__((constructor)) static void begin(void) {
    real_clock = (clock_fn *)dlsym(RTLD_NEXT, "clock_gettime");
    real_wait = (wait_fn *)dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2"); /* else x86-64 finds an older one */
    if (!real_wait)
        real_wait = (wait_fn *)dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    real_c11_wait = (c11_wait_fn *)dlsym(RTLD_NEXT, "cnd_timedwait");
    const char *path = getenv("WALL_CLOCK_OFFSET");
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0)
        abort();
    offset_s = mmap(NULL, sizeof *offset_s, PROT_READ, MAP_SHARED, file, 0);
    if (offset_s == MAP_FAILED)
        abort();
}

int clock_gettime(clockid_t id, struct timespec *now) {
    if (!real_clock) /* another library's constructor asks before ours ran */
        real_clock = (clock_fn *)dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real_clock(id, now);
    if (!failed && offset_s && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        now->tv_sec += *offset_s;
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now)
        *now = precise.tv_sec;
    return precise.tv_sec;
}

/* The real moment until which to wait for a slice of what is left until a moment of this clock; 0 when that is past. */
static int slice(const struct timespec *deadline, struct timespec *until) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int64_t left_ns = (deadline->tv_sec - now.tv_sec) * SECOND_NS + deadline->tv_nsec - now.tv_nsec;
    if (left_ns <= 0)
        return 0;
    real_clock(CLOCK_REALTIME, until);
    until->tv_nsec += left_ns < SLICE_NS ? left_ns : SLICE_NS;
    if (until->tv_nsec >= SECOND_NS) {
        until->tv_sec += 1;
        until->tv_nsec -= SECOND_NS;
    }
    return 1;
}

/* A slice ends as a wake-up without a cause, which every waiter must bear: to wait on here could miss one that has a cause. */

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *deadline) {
    struct timespec until;
    if (deadline->tv_sec < LEAST_WALL_S)
        return real_wait(condition, mutex, deadline);
    if (!slice(deadline, &until))
        return ETIMEDOUT;
    int outcome = real_wait(condition, mutex, &until);
    return outcome == ETIMEDOUT ? 0 : outcome;
}

/* C11's, which librdkafka calls: glibc's own goes past the function above. */
int cnd_timedwait(cnd_t *condition, mtx_t *mutex, const struct timespec *deadline) {
    struct timespec until;
    if (!slice(deadline, &until))
        return thrd_timedout;
    int outcome = real_c11_wait(condition, mutex, &until);
    return outcome == thrd_timedout ? thrd_success : outcome;
}
