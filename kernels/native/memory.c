/* Memory that processes share: mappings, robust stripe locks, counters to wait for. */
#define _GNU_SOURCE
#include "dlp.h"
#include <errno.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const uint64_t MAGIC = 0x31786f42706c64; /* "dlpBox1" */

/* ---- mappings: addresses, or a negative errno ---- */

intptr_t dlp_reserve(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? -errno : (intptr_t)p;
}

intptr_t dlp_map(intptr_t at, size_t bytes, int fd, size_t offset) {
    int flags = MAP_SHARED | MAP_POPULATE | (at ? MAP_FIXED : 0);
    void *p = mmap((void *)at, bytes, PROT_READ | PROT_WRITE, flags, fd, (off_t)offset);
    return p == MAP_FAILED ? -errno : (intptr_t)p;
}

intptr_t dlp_allocate(size_t bytes) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (p == MAP_FAILED) return -errno;
    madvise(p, bytes, MADV_HUGEPAGE); /* advice only: a refusal changes nothing */
    memset(p, 0, bytes);              /* touch now, not on the hot path */
    return (intptr_t)p;
}

int dlp_unmap(intptr_t at, size_t bytes) { return munmap((void *)at, bytes) ? -errno : 0; }

/* ---- stripe locks ---- */

size_t dlp_header_bytes(size_t floats) {
    size_t stripes = (floats + STRIPE - 1) / STRIPE;
    size_t bytes = sizeof(segment_header) + stripes * sizeof(stripe_lock);
    return (bytes + PAGE - 1) / PAGE * PAGE;
}

int dlp_header_init(segment_header *h, size_t floats) {
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ERRORCHECK); /* EDEADLK, not a deadlock */
    h->floats = floats;
    h->stripes = (floats + STRIPE - 1) / STRIPE;
    int error = 0;
    for (size_t i = 0; i < h->stripes && !error; i++)
        error = pthread_mutex_init(&h->locks[i].mutex, &attr);
    pthread_mutexattr_destroy(&attr);
    h->magic = MAGIC;
    return -error;
}

int dlp_header_check(const segment_header *h, size_t floats) {
    return h->magic == MAGIC && h->floats == floats;
}

/* A lock whose owner died is ours; each element saw the dead owner's update at most once. */
int dlp_lock(segment_header *h, size_t stripe) {
    int error = pthread_mutex_lock(&h->locks[stripe].mutex);
    if (error == EOWNERDEAD) {
        __atomic_fetch_add(&h->recovered, 1, __ATOMIC_RELAXED);
        error = pthread_mutex_consistent(&h->locks[stripe].mutex);
    }
    return -error;
}

int dlp_try_lock(segment_header *h, size_t stripe) {
    int error = pthread_mutex_trylock(&h->locks[stripe].mutex);
    if (error == EOWNERDEAD) {
        __atomic_fetch_add(&h->recovered, 1, __ATOMIC_RELAXED);
        error = pthread_mutex_consistent(&h->locks[stripe].mutex);
    }
    return -error;
}

void dlp_unlock(segment_header *h, size_t stripe) { pthread_mutex_unlock(&h->locks[stripe].mutex); }

/* Apply an operation to y[start, start+n), stripe by stripe. x and z belong to start.
   Workers pass different turns, so that they do not queue up behind one another. */
int dlp_locked(int op, segment_header *h, float *y, size_t start, size_t n, float *x, float *z,
               float a, float b, size_t turn) {
    if (!n) return 0;
    size_t first = start / STRIPE, count = (start + n - 1) / STRIPE - first + 1;
    for (size_t k = 0; k < count; k++) {
        size_t stripe = first + (k + turn) % count;
        size_t from = stripe * STRIPE < start ? start : stripe * STRIPE;
        size_t to = (stripe + 1) * STRIPE > start + n ? start + n : (stripe + 1) * STRIPE;
        int error = dlp_lock(h, stripe);
        if (error) return error;
        float *xs = x ? x + (from - start) : NULL, *zs = z ? z + (from - start) : NULL;
        dlp_apply(op, y + from, xs, zs, to - from, a, b);
        dlp_unlock(h, stripe);
    }
    return 0;
}

/* ---- counters ---- */

static long futex(uint32_t *word, int op, uint32_t value, const struct timespec *timeout) {
    return syscall(SYS_futex, word, op, value, timeout, NULL, 0);
}

void dlp_counter_wake(counter *c) {
    __atomic_fetch_add(&c->turn, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&c->waiters, __ATOMIC_SEQ_CST)) futex(&c->turn, FUTEX_WAKE, INT32_MAX, NULL);
}

int64_t dlp_counter_get(counter *c) { return __atomic_load_n(&c->value, __ATOMIC_SEQ_CST); }

void dlp_counter_set(counter *c, int64_t value) {
    __atomic_store_n(&c->value, value, __ATOMIC_SEQ_CST);
    dlp_counter_wake(c);
}

int64_t dlp_counter_add(counter *c, int64_t n) {
    int64_t old = __atomic_fetch_add(&c->value, n, __ATOMIC_SEQ_CST);
    dlp_counter_wake(c);
    return old;
}

/* Returns what the counter held: the swap happened if that equals expected. */
int64_t dlp_counter_swap(counter *c, int64_t expected, int64_t desired) {
    int64_t seen = expected;
    if (__atomic_compare_exchange_n(&c->value, &seen, desired, 0, __ATOMIC_SEQ_CST,
                                    __ATOMIC_SEQ_CST))
        dlp_counter_wake(c);
    return seen;
}

/* Wait at most ms for the value to reach at_least; 1 when it has, 0 when not yet. */
int dlp_counter_wait(counter *c, int64_t at_least, int ms) {
    struct timespec now, end, left;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += ms / 1000;
    end.tv_nsec += (long)(ms % 1000) * 1000000;
    for (;;) {
        uint32_t turn = __atomic_load_n(&c->turn, __ATOMIC_SEQ_CST);
        if (dlp_counter_get(c) >= at_least) return 1;
        clock_gettime(CLOCK_MONOTONIC, &now);
        int64_t ns = (end.tv_sec - now.tv_sec) * 1000000000LL + end.tv_nsec - now.tv_nsec;
        if (ns <= 0) return 0;
        left.tv_sec = ns / 1000000000;
        left.tv_nsec = ns % 1000000000;
        __atomic_fetch_add(&c->waiters, 1, __ATOMIC_SEQ_CST);
        long result = futex(&c->turn, FUTEX_WAIT, turn, &left);
        int interrupted = result == -1 && errno == EINTR;
        __atomic_fetch_sub(&c->waiters, 1, __ATOMIC_SEQ_CST);
        if (interrupted) return dlp_counter_get(c) >= at_least; /* let Python see its signal */
    }
}
