/* Segments: robust stripe locks, operations under them, and shadows for consistent snapshots. */
#define _GNU_SOURCE
#include "dlp.h"
#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const uint64_t MAGIC = 0x32786f42706c64; /* "dlpBox2" */
enum { SLICE_NS = 100000000, PART = 1024 /* floats */ };

static int patience_ms = 60000;

/* How long to wait for a lock whose owner lives but does not go on (stopped, or swapped out). */
void dlp_patience(int ms) { patience_ms = ms; }

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

/* ---- locks ---- */

/* The first try is the common case; then wait in slices of a clock that cannot jump. */
static int wait_for(pthread_mutex_t *mutex) {
    int error = pthread_mutex_trylock(mutex);
    if (error != EBUSY) return error;
    struct timespec end;
    for (int waited = 0; waited < patience_ms; waited += SLICE_NS / 1000000) {
        clock_gettime(CLOCK_MONOTONIC, &end);
        end.tv_nsec += SLICE_NS;
        if (end.tv_nsec >= 1000000000) end.tv_sec++, end.tv_nsec -= 1000000000;
        error = pthread_mutex_clocklock(mutex, CLOCK_MONOTONIC, &end);
        if (error != ETIMEDOUT) return error;
    }
    return EBUSY;
}

static int taken(segment_header *h, stripe_lock *lock, int error) {
    if (error == EOWNERDEAD) {
        __atomic_fetch_add(&h->recovered, 1, __ATOMIC_RELAXED);
        error = pthread_mutex_consistent(&lock->mutex);
        lock->abandoned = 1;
    }
    if (!error) lock->owner = (uint32_t)getpid();
    return -error;
}

/* Lock a stripe: 0, or a negative errno (EDEADLK: this thread holds it; EBUSY: its owner lives but
   does not go on). After an owner's death each element saw its update at most once. */
int dlp_lock(segment_header *h, size_t stripe) {
    stripe_lock *lock = &h->locks[stripe];
    return taken(h, lock, wait_for(&lock->mutex));
}

/* Lock a stripe, and return 1 when an owner before died holding it: whoever asks first is told. */
int dlp_lock_told(segment_header *h, size_t stripe) {
    int error = dlp_lock(h, stripe);
    if (error) return error;
    int told = h->locks[stripe].abandoned != 0;
    h->locks[stripe].abandoned = 0;
    return told;
}

int dlp_try_lock(segment_header *h, size_t stripe) {
    stripe_lock *lock = &h->locks[stripe];
    return taken(h, lock, pthread_mutex_trylock(&lock->mutex));
}

void dlp_unlock(segment_header *h, size_t stripe) {
    h->locks[stripe].owner = 0;
    pthread_mutex_unlock(&h->locks[stripe].mutex);
}

/* Unlock in the name of an owner that is gone: the next one is told. */
void dlp_abandon(segment_header *h, size_t stripe) {
    h->locks[stripe].abandoned = 1;
    __atomic_fetch_add(&h->recovered, 1, __ATOMIC_RELAXED);
    dlp_unlock(h, stripe);
}

uint32_t dlp_owner(const segment_header *h, size_t stripe) { return h->locks[stripe].owner; }

/* ---- changes ---- */

typedef struct {
    size_t stripe, from, to; /* elements of the segment */
} part;

static part part_of(size_t stripe, size_t start, size_t n) {
    part p = {stripe, stripe * STRIPE, (stripe + 1) * STRIPE};
    if (p.from < start) p.from = start;
    if (p.to > start + n) p.to = start + n;
    return p;
}

static void changed(const segment *g, size_t stripe) {
    uint64_t *own = &g->h->locks[stripe].version;
    /* Whoever asks in between sees a change, rather than none for ever. */
    __atomic_store_n(own, UINT64_MAX, __ATOMIC_SEQ_CST);
    uint64_t now = __atomic_add_fetch(&g->h->version, 1, __ATOMIC_SEQ_CST);
    __atomic_store_n(own, now, __ATOMIC_SEQ_CST);
}

static uint32_t cut_of(const segment *g) { return __atomic_load_n(&g->h->cut, __ATOMIC_SEQ_CST); }

static void save(const segment *g, size_t stripe, uint32_t cut) {
    part p = part_of(stripe, 0, g->h->floats);
    memcpy(g->shadow + p.from, g->data + p.from, (p.to - p.from) * sizeof(float));
    g->h->locks[stripe].saved = cut;
}

static int writes_x(int code) {
    return code == OP_ELASTIC || code == OP_MERGE || code == OP_FETCH ||
           code == OP_DELAY || code == OP_ADAPT;
}

/* An operation that began before the cut changes the shadow, too; x, z and what has no shadow
   are spared. */
static void change_shadow(const operation *o, const segment *const *where, const int *late,
                          part p, void *x, float *z, size_t at) {
    float spare[3][PART], xs[PART], zs[PART], *own[3];
    for (size_t i = p.from, n; i < p.to; i += n, at += n) {
        n = p.to - i < PART ? p.to - i : PART;
        for (int k = 0; k < 3; k++) {
            own[k] = !where[k] ? NULL : late[k] ? where[k]->shadow + i : spare[k];
            if (where[k] && !late[k]) memcpy(spare[k], where[k]->data + i, n * sizeof *xs);
        }
        if (!writes_x(o->code) && !z) {
            dlp_apply(o, own[0], own[1], own[2], x, NULL, at, n);
            continue;
        }
        operation plain = *o;
        plain.format = FORMAT_FP32;
        if (z) memcpy(zs, z + at, n * sizeof *zs);
        if (o->format == FORMAT_FP32) memcpy(xs, (float *)x + at, n * sizeof *xs);
        else dlp_unpack(o->format, x, xs, at, n, o->entries);
        dlp_apply(&plain, own[0], own[1], own[2], xs, z ? zs : NULL, 0, n);
    }
}

/* With every stripe of y, s and t locked: keep the snapshot whole, then change what is live. */
static void change(const operation *o, const segment *const *where, part p, void *x, float *z,
                   size_t at, uint32_t epoch) {
    float *live[3] = {0};
    int late[3] = {0}, any = 0;
    for (int k = 0; k < 3 && where[k]; k++) {
        const segment *g = where[k];
        stripe_lock *lock = &g->h->locks[p.stripe];
        uint32_t cut = cut_of(g);
        live[k] = g->data + p.from;
        if (cut && epoch >= cut && lock->saved != cut) save(g, p.stripe, cut);
        any |= late[k] = cut && epoch < cut && lock->saved == cut;
    }
    if (any) change_shadow(o, where, late, p, x, z, at);
    dlp_apply(o, live[0], live[1], live[2], x, z, at, p.to - p.from);
    for (int k = 0; k < 3 && where[k]; k++) changed(where[k], p.stripe);
}

static int lock_all(const segment *const *where, size_t stripe, int *held) {
    for (int k = 0; k < 3; k++) held[k] = 0;
    for (int k = 0; k < 3 && where[k]; k++) {
        int error = dlp_lock(where[k]->h, stripe);
        held[k] = error >= 0;
        if (error >= 0 || error == -EDEADLK) continue; /* EDEADLK: this thread holds it already */
        while (k--)
            if (held[k]) dlp_unlock(where[k]->h, stripe);
        return error;
    }
    return 0;
}

/* A large plain copy under all of its locks at once: one long loop is the fastest way.
   Returns 0 when that cannot be done now: a snapshot is being taken, or a lock is not free. */
static int copied(const segment *g, size_t start, size_t n, const float *x) {
    size_t first = start / STRIPE, last = (start + n - 1) / STRIPE, held = first;
    while (held <= last && dlp_try_lock(g->h, held) == 0) held++;
    int done = held > last && !cut_of(g);
    if (done) {
        dlp_copy(g->data + start, x, n);
        for (size_t i = first; i <= last; i++) changed(g, i);
    }
    while (held-- > first) dlp_unlock(g->h, held);
    return done;
}

/* Apply an operation to y[start, start+n) and its states, stripe by stripe. x and z hold a span
   of which this is the part from `at` on. Workers pass different turns, so that they do not queue
   up behind one another. where: y, then the states, then NULL; at least three and a NULL. */
int dlp_locked(const operation *o, const segment *const *where, size_t start, size_t n, void *x,
               float *z, size_t at, size_t turn, uint32_t epoch) {
    if (!n) return 0;
    size_t first = start / STRIPE, count = (start + n - 1) / STRIPE - first + 1;
    int plain = o->code == OP_COPY && o->format == FORMAT_FP32 && count > 1;
    if (plain && copied(where[0], start, n, (float *)x + at)) return 0;
    for (size_t k = 0; k < count; k++) {
        size_t stripe = first + (k + turn) % count;
        int held[3], error = lock_all(where, stripe, held);
        if (error) return error;
        part p = part_of(stripe, start, n);
        change(o, where, p, x, z, at + p.from - start, epoch);
        for (int i = 0; i < 3 && where[i]; i++)
            if (held[i]) dlp_unlock(where[i]->h, stripe);
    }
    return 0;
}

/* A whole operation on mapped memory: enter the gate, run, leave. -EAGAIN: the gate is shut. */
int dlp_gated(const operation *o, const segment *const *where, const gate *g, void *x, float *z,
              size_t turn) {
    int64_t epoch = dlp_enter(g);
    if (epoch < 0) return -EAGAIN;
    int error = dlp_locked(o, where, 0, where[0]->h->floats, x, z, 0, turn, (uint32_t)epoch);
    dlp_leave(g->slot);
    return error;
}

/* The number of the next update by an optimizer that counts them, from 1. */
uint64_t dlp_step(segment_header *h) { return __atomic_add_fetch(&h->steps, 1, __ATOMIC_SEQ_CST); }

/* ---- snapshots and changes ---- */

/* From now on, operations of this epoch and later save a stripe before they change it. */
void dlp_cut(segment_header *h, uint32_t cut) { __atomic_store_n(&h->cut, cut, __ATOMIC_SEQ_CST); }

/* Copy a span as it was at the cut. */
int dlp_read_cut(const segment *g, size_t start, size_t n, float *into) {
    size_t last = n ? (start + n - 1) / STRIPE + 1 : 0;
    for (size_t stripe = start / STRIPE; stripe < last; stripe++) {
        part p = part_of(stripe, start, n);
        int error = dlp_lock(g->h, stripe), held = error >= 0;
        if (error < 0 && error != -EDEADLK) return error;
        uint32_t cut = cut_of(g);
        const float *from = cut && g->h->locks[stripe].saved == cut ? g->shadow : g->data;
        memcpy(into + (p.from - start), from + p.from, (p.to - p.from) * sizeof *into);
        if (held) dlp_unlock(g->h, stripe);
    }
    return 0;
}

/* List up to `most` stripes changed after version `since`; *now is the version to ask from next. */
size_t dlp_changed(const segment_header *h, uint64_t since, uint32_t *stripes, size_t most,
                   uint64_t *now) {
    *now = __atomic_load_n(&h->version, __ATOMIC_SEQ_CST);
    size_t found = 0;
    for (size_t i = 0; i < h->stripes && found < most; i++)
        if (__atomic_load_n(&h->locks[i].version, __ATOMIC_SEQ_CST) > since)
            stripes[found++] = (uint32_t)i;
    return found;
}
