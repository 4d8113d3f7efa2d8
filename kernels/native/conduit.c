/* Conduits: what carries a lane between a worker and a box, a socket or two rows of slots in memory.
   Memory is shared by the two sides; or each side has its own, and an engine moves full slots. */
#define _GNU_SOURCE
#include "dlp.h"
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

enum { SLICE_MS = 100 /* between two looks whether the other process lives */ };

/* ---- rows of slots: one side fills, the other empties, in order ---- */

size_t dlp_slots_bytes(uint32_t count, size_t size) { return PAGE + count * size; }

/* Lay out memory of zeros; the count is a power of two. */
void dlp_slots_init(slots *s, uint32_t count, size_t size) {
    s->size = size;
    __atomic_store_n(&s->count, count, __ATOMIC_SEQ_CST);
}

static uint32_t load(const uint32_t *word) { return __atomic_load_n(word, __ATOMIC_SEQ_CST); }
static void store(uint32_t *word, uint32_t value) { __atomic_store_n(word, value, __ATOMIC_SEQ_CST); }

uint32_t dlp_slots_full(const slots *s) { return load(&s->filled) - load(&s->emptied); }

char *dlp_slot(const slots *s, uint32_t number) {
    return (char *)s + PAGE + (number & (s->count - 1)) * s->size;
}

/* Say that the next slot holds so many bytes. */
void dlp_slot_filled(slots *s, uint32_t bytes) {
    s->bytes[s->filled & (s->count - 1)] = bytes;
    store(&s->filled, s->filled + 1);
}

void dlp_slot_emptied(slots *s) { store(&s->emptied, s->emptied + 1); }

/* Wake the other side: a thread that waits for a bell, or an engine that waits for a file. */
static void ring(conduit *c) {
    if (c->fd >= 0) eventfd_write(c->fd, 1);
    else dlp_counter_wake(c->other);
}

/* Nothing comes any more, in either direction; whoever waits looks again. */
void dlp_hang_up(conduit *c) {
    if (!c->in) return;
    store(&c->in->closed, 1);
    store(&c->out->closed, 1);
    dlp_counter_wake(&c->in->bell);
    ring(c);
}

static ssize_t from_slots(conduit *c, char *to, size_t n) {
    slots *s = c->in;
    uint32_t over = load(&s->closed); /* read first: what came before the end is still there */
    if (!dlp_slots_full(s)) return over ? CLOSED : 0;
    size_t holds = s->bytes[s->emptied & (s->count - 1)];
    if (holds > s->size || holds <= c->taken) return -EPROTO;
    if (n > holds - c->taken) n = holds - c->taken;
    memcpy(to, dlp_slot(s, s->emptied) + c->taken, n);
    c->taken += n;
    if (c->taken < holds) return (ssize_t)n;
    c->taken = 0;
    dlp_slot_emptied(s);
    ring(c);
    return (ssize_t)n;
}

static ssize_t into_slots(conduit *c, const char *from, size_t n, int more) {
    slots *s = c->out;
    if (load(&s->closed)) return -EPIPE;
    if (dlp_slots_full(s) >= s->count) return 0;
    if (n > s->size - c->begun) n = s->size - c->begun;
    memcpy(dlp_slot(s, s->filled) + c->begun, from, n);
    c->begun += n;
    if (c->begun < s->size && more) return (ssize_t)n;
    dlp_slot_filled(s, (uint32_t)c->begun);
    c->begun = 0;
    ring(c);
    return (ssize_t)n;
}

/* Tell whether the other side's process is gone: it held a robust lock as long as it lived. */
int dlp_gone(segment_header *life) {
    if (dlp_try_lock(life, 0)) return 0;
    dlp_unlock(life, 0); /* for the next one who asks */
    return 1;
}

static int slots_ready(conduit *c, int out, int in, int ms) {
    for (int waited = 0;; waited += SLICE_MS) {
        uint32_t turn = load(&c->in->bell.turn);
        if (load(&c->in->closed) || (in && dlp_slots_full(c->in))) return 1;
        if (out && dlp_slots_full(c->out) < c->out->count) return 1;
        int left = ms < 0 || ms - waited > SLICE_MS ? SLICE_MS : ms - waited;
        if (left <= 0) return 0;
        if (dlp_bell_wait(&c->in->bell, turn, 1000 * left) == -EINTR) return -EINTR;
        if (c->life && dlp_gone(c->life)) dlp_hang_up(c);
    }
}

/* ---- either of them: what can be moved now, waiting, and moving all ---- */

static int again(int error) { return error == EAGAIN || error == EWOULDBLOCK || error == EINTR; }

static ssize_t some(ssize_t n, int reading) {
    if (n > 0) return n;
    if (n == 0) return reading ? CLOSED : 0;
    return again(errno) ? 0 : -errno;
}

/* Take up to n bytes that have come: how many, 0 for none yet, CLOSED, or an error. */
ssize_t dlp_take(conduit *c, char *to, size_t n) {
    if (c->in) return from_slots(c, to, n);
    return some(recv(c->fd, to, n, MSG_DONTWAIT), 1);
}

/* Put up to n bytes on their way: how many, 0 for no room, or an error. */
ssize_t dlp_put(conduit *c, const char *from, size_t n) {
    if (c->in) return into_slots(c, from, n, 0);
    return some(send(c->fd, from, n, MSG_DONTWAIT | MSG_NOSIGNAL), 0);
}

/* Wait at most ms until bytes can go out, or come in, or the other side ends: 1, 0 or an error. */
int dlp_ready(conduit *c, int out, int in, int ms) {
    if (c->in) return slots_ready(c, out, in, ms);
    struct pollfd p = {c->fd, (short)((out ? POLLOUT : 0) | (in ? POLLIN : 0)), 0};
    int ready = poll(&p, 1, ms);
    return ready < 0 ? -errno : ready > 0;
}

static int waited(conduit *c, int out) {
    int ready = slots_ready(c, out, !out, c->ms);
    if (ready == -EINTR) return 0;
    return ready < 0 ? ready : ready ? 0 : -ETIMEDOUT;
}

/* Receive exactly n bytes; a thread of its own may block. */
int dlp_receive(conduit *c, char *at, size_t n) {
    while (n) {
        ssize_t m = c->in ? from_slots(c, at, n) : recv(c->fd, at, n, MSG_WAITALL);
        if (!c->in && m < 0 && errno == EINTR) continue;
        if (!c->in && m <= 0) return m ? -errno : CLOSED;
        if (m < 0) return (int)m;
        int error = m ? 0 : waited(c, 0);
        if (error) return error;
        at += m;
        n -= (size_t)m;
    }
    return 0;
}

/* Send exactly n bytes; with `more`, keep the last of them back for those that follow at once. */
int dlp_send(conduit *c, const char *at, size_t n, int more) {
    while (n) {
        int flags = MSG_NOSIGNAL | (more ? MSG_MORE : 0);
        ssize_t m = c->in ? into_slots(c, at, n, more) : send(c->fd, at, n, flags);
        if (!c->in && m < 0 && errno == EINTR) continue;
        if (m < 0) return c->in ? (int)m : -errno;
        int error = m ? 0 : waited(c, 1);
        if (error) return error;
        at += m;
        n -= (size_t)m;
    }
    return 0;
}

/* Read and throw away the bytes of a refused request. */
int dlp_discard(conduit *c, size_t n) {
    char sink[PAGE];
    for (size_t m; n; n -= m) {
        m = n < sizeof sink ? n : sizeof sink;
        int error = dlp_receive(c, sink, m);
        if (error) return error;
    }
    return 0;
}
