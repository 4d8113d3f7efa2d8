/* The hot operations of the memory box: plain C, no Python and no torch headers. */
#ifndef DLP_H
#define DLP_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* One build serves old and new processors; the loader picks the widest version. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(DLP_PLAIN)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

/* The processor stops fetching ahead at the end of each page; long loops ask for the next one. */
enum { STEP = 64 /* elements between two requests */ };
static inline __attribute__((always_inline)) void ahead(const void *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)p + 4096 + i);
}

enum { PAGE = 4096, STRIPE = 1 << 18 /* floats: 1 MiB */, CHUNK = 1 << 16 /* floats: 256 KiB */ };

/* ---- operations (operations.c): reference.py defines each of them ---- */

/* y and the states s, t live in the box; x (and z) with whoever asks. k[] holds the scalars. */
enum operation_code {
    OP_NONE = -1,
    OP_SCAL = 0,       /* y = k0 y */
    OP_AXPY = 1,       /* y = y + k0 x */
    OP_AXPBY = 2,      /* y = k0 x + k1 y */
    OP_ELASTIC = 3,    /* d = k0 (x - y); y = y + d; x = x - d */
    OP_DIFFERENCE = 4, /* z = k0 (x - y); y = y + z */
    OP_MERGE = 5,      /* y = y + (x - z), or x where y == z; x = z = y */
    OP_FETCH = 6,      /* y = y + k0 x; x = y */
    OP_COPY = 7,       /* y = x */
    OP_CLIP = 8,       /* y = y + k0 min(max(x, -k1), k1) */
    OP_SGD = 9,        /* g = x + k2 y; s = k1 s + g; y = y - k0 (k3 ? g + k1 s : s) */
    OP_OUTER = 10,     /* g = y - x; s = k1 s + g; y = y - k0 (g + k1 s) */
    OP_ADAM = 11,      /* k: rate, beta1, beta2, eps, decay, decoupled; s, t: moments; k6: step */
    OP_DELAY = 12,     /* y = y - k0 (x + k1 x x (y - s)); s = x = y */
    OP_SETTLE = 13,    /* y = y + k0 s; s = 0 */
    OP_GATHER = 14,    /* y = y + k0 x; s = s + k1 x */
    OP_ADAPT = 15,     /* t = k2 t + (1 - k2) x x; OP_DELAY with k1 / sqrt(t + k3) */
    OP_FOLD = 16,      /* g = k0 t; s = k2 s + g; y = y - k1 (k3 g + k2 s); t = 0, or -0: done */
};

/* How the elements of x lie in memory; z and everything in the box are fp32. */
enum payload_format {
    FORMAT_FP32 = 0,
    FORMAT_FP16 = 1,
    FORMAT_BF16 = 2,
    FORMAT_INT8 = 3, /* blocks of BLOCK8 elements: one fp32 scale, then int8 each; the last may be short */
    FORMAT_TOPK = 4, /* `entries` uint32 positions in ascending order, then as many fp32 values */
};
enum { BLOCK8 = 256 };

typedef struct {
    int32_t code, format;
    uint64_t entries;
    float k[8];
} operation;

/* Apply o to n elements. y, s, t point at the first of them; x and z at the start of the span of
   which they are the elements [at, at + n). s, t, z may be NULL where o does not use them. */
void dlp_apply(const operation *o, float *y, float *s, float *t, void *x, float *z, size_t at,
               size_t n);
void dlp_copy(float *y, const float *x, size_t n);
size_t dlp_payload_bytes(int format, size_t n, size_t entries);
int dlp_check_payload(int format, const void *payload, size_t n, size_t entries);

/* ---- segments (memory.c): locks in front, fp32 data behind, room for a shadow after them ---- */

typedef union {
    struct {
        pthread_mutex_t mutex;
        uint32_t owner;     /* process that holds it */
        uint32_t abandoned; /* its last owner died holding it: tell the next one */
        uint64_t version;   /* the segment's version when the stripe changed last */
        uint32_t saved;     /* the cut for which the shadow holds this stripe */
    };
    char line[64];
} stripe_lock;

typedef struct {
    uint64_t magic, floats, stripes, recovered;
    uint64_t version; /* grows with every change of a stripe */
    uint64_t steps;   /* updates by an optimizer that counts them */
    uint32_t cut;     /* snapshot being taken: operations of this epoch and later are not in it */
    char line[76];
    stripe_lock locks[];
} segment_header;

/* A segment as this process maps it. */
typedef struct {
    segment_header *h;
    float *data, *shadow;
} segment;

/* A 64-bit number in shared memory that processes can wait for. */
typedef struct {
    int64_t value;
    uint32_t turn, waiters;
    char line[48];
} counter;

/* The gate of a job, as one thread sees it. */
typedef struct {
    counter *epoch; /* of operations that begin now */
    counter *shut;  /* below 0: nobody may enter */
    counter *slot;  /* the thread's own: 0, or 1 + the epoch of its operation under way */
} gate;

int dlp_locked(const operation *o, const segment *const *where, size_t start, size_t n, void *x,
               float *z, size_t at, size_t turn, uint32_t epoch);
int dlp_lock(segment_header *h, size_t stripe);
void dlp_unpack(int format, const void *payload, float *out, size_t at, size_t n, size_t entries);
int dlp_try_lock(segment_header *h, size_t stripe);
void dlp_unlock(segment_header *h, size_t stripe);
int64_t dlp_enter(const gate *g);
void dlp_leave(counter *slot);

void dlp_counter_wake(counter *c);
int dlp_bell_wait(counter *c, uint32_t turn, int64_t us);

/* ---- what carries bytes between a worker and a box (conduit.c) ---- */

enum { CLOSED = -1000000 /* end of stream, apart from every errno */, MOST_SLOTS = 64 };

/* A row of slots in memory: PAGE bytes of this, then `count` slots of `size` bytes. */
typedef struct {
    uint32_t count;
    uint32_t left; /* whoever fills it has ended, and touches the memory no more */
    uint64_t size;
    char line0[48];
    uint32_t filled; /* slots ever filled; the filler's line */
    char line1[60];
    uint32_t emptied; /* slots ever emptied; the emptier's line */
    char line2[60];
    uint32_t closed; /* by either side */
    char line3[60];
    counter bell; /* of the emptier: rung when a slot was filled here, or emptied in its other row */
    uint32_t bytes[MOST_SLOTS];
} slots;

/* One side of a lane: a socket, or rows of slots in and out. */
typedef struct {
    int32_t fd; /* the socket; with slots: an eventfd to write to instead of ringing, or -1 */
    int32_t ms; /* with slots: patience of dlp_receive and dlp_send, -1 for ever */
    slots *in, *out;
    counter *other;       /* rung for the other side */
    segment_header *life; /* lock 0 is held while the other side's process lives; or NULL */
    uint64_t taken, begun; /* bytes read of the first slot in, written of the next slot out */
} conduit;

size_t dlp_slots_bytes(uint32_t count, size_t size);
void dlp_slots_init(slots *s, uint32_t count, size_t size);
ssize_t dlp_take(conduit *c, char *to, size_t n);
ssize_t dlp_put(conduit *c, const char *from, size_t n);
int dlp_ready(conduit *c, int out, int in, int ms);
int dlp_receive(conduit *c, char *at, size_t n);
int dlp_send(conduit *c, const char *at, size_t n, int more);

/* ---- the log of what a box has done (log.c) ---- */

/* Records go to a file, to a mirror box, or to both; -1 stands for none. */
typedef struct {
    pthread_mutex_t mutex;
    pthread_rwlock_t order; /* operations share it, whoever needs a quiet moment has it alone */
    int file, mirror;
    uint64_t position, records, degraded;
} oplog;

/* In front of every record: head is msgpack made by Python, body is the payload. */
typedef struct {
    uint32_t magic, head;
    uint64_t body, at, n, sum;
} record;

int dlp_append(oplog *l, record *r, const void *head, const void *body);
void dlp_log_share(oplog *l);
void dlp_log_free(oplog *l);

#endif
