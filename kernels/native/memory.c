/* Memory that processes share: mappings, and counters to wait for. */
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

/* ---- mappings: addresses, or a negative errno ---- */

intptr_t dlp_reserve(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? -errno : (intptr_t)p;
}

intptr_t dlp_map(intptr_t at, size_t bytes, int fd, size_t offset, int populate) {
    int flags = MAP_SHARED | (populate ? MAP_POPULATE : MAP_NORESERVE) | (at ? MAP_FIXED : 0);
    void *p = mmap((void *)at, bytes, PROT_READ | PROT_WRITE, flags, fd, (off_t)offset);
    return p == MAP_FAILED ? -errno : (intptr_t)p;
}

/* Map again, elsewhere, what is mapped and shared at `from`, without its file. */
intptr_t dlp_map_again(intptr_t at, size_t bytes, intptr_t from) {
    long flags = MREMAP_MAYMOVE | (at ? MREMAP_FIXED : 0);
    long p = syscall(SYS_mremap, from, 0L, bytes, flags, at); /* UCX replaces mremap by a lesser one */
    return p == -1 ? -errno : p;
}

/* Give shared pages their memory; an error where there is none left, or no way to ask (EINVAL). */
int dlp_populate(intptr_t at, size_t bytes) {
    return madvise((void *)at, bytes, 23 /* MADV_POPULATE_WRITE, Linux 5.14 */) ? -errno : 0;
}

/* Take the memory of shared pages back; their addresses stay, and read as zeros. */
int dlp_punch(intptr_t at, size_t bytes) {
    return madvise((void *)at, bytes, MADV_REMOVE) ? -errno : 0;
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

/* Sleep until the counter's turn is another one, or for so long; -EINTR when a signal came. */
int dlp_bell_wait(counter *c, uint32_t turn, int64_t us) {
    struct timespec left = {us / 1000000, us % 1000000 * 1000};
    __atomic_fetch_add(&c->waiters, 1, __ATOMIC_SEQ_CST);
    long result = futex(&c->turn, FUTEX_WAIT, turn, &left);
    int interrupted = result == -1 && errno == EINTR;
    __atomic_fetch_sub(&c->waiters, 1, __ATOMIC_SEQ_CST);
    return interrupted ? -EINTR : 0;
}

static int64_t longest_us = INT64_MAX;

/* Look at counters at least so often: MPI changes them without a wake-up. */
void dlp_counter_slice(int64_t us) { longest_us = us; }

/* Wait at most ms for the value to reach at_least; 1 when it has, 0 when not yet. */
int dlp_counter_wait(counter *c, int64_t at_least, int ms) {
    struct timespec now, end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += ms / 1000;
    end.tv_nsec += (long)(ms % 1000) * 1000000;
    for (;;) {
        uint32_t turn = __atomic_load_n(&c->turn, __ATOMIC_SEQ_CST);
        if (dlp_counter_get(c) >= at_least) return 1;
        clock_gettime(CLOCK_MONOTONIC, &now);
        int64_t us = (end.tv_sec - now.tv_sec) * 1000000LL + (end.tv_nsec - now.tv_nsec + 999) / 1000;
        if (us <= 0) return 0;
        if (us > longest_us) us = longest_us;
        if (dlp_bell_wait(c, turn, us) == -EINTR)
            return dlp_counter_get(c) >= at_least; /* let Python see its signal */
    }
}

/* ---- the gate of a job: which epoch an operation belongs to ---- */

/* Say in a slot of one's own that an operation of this epoch is under way; -1 while shut. */
int64_t dlp_enter(const gate *g) {
    for (;;) {
        int64_t now = dlp_counter_get(g->epoch);
        __atomic_store_n(&g->slot->value, now + 1, __ATOMIC_SEQ_CST);
        if (dlp_counter_get(g->shut) < 0) {
            dlp_leave(g->slot);
            return -1;
        }
        if (dlp_counter_get(g->epoch) == now) return now;
    }
}

void dlp_leave(counter *slot) {
    __atomic_store_n(&slot->value, 0, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&slot->waiters, __ATOMIC_SEQ_CST)) dlp_counter_wake(slot);
}

/* Wait at most ms until the operation in a slot, if of an epoch before `cut`, has ended. */
int dlp_left(counter *slot, int64_t cut, int ms) {
    for (int waited = 0;; waited++) {
        int64_t seen = dlp_counter_get(slot);
        if (seen == 0 || seen > cut) return 1;
        if (waited >= ms) return 0;
        struct timespec millisecond = {0, 1000000};
        nanosleep(&millisecond, NULL);
    }
}
