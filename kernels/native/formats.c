/* Compressed vectors: packing with error feedback, unpacking, and what a payload may look like. */
#include "formats.h"
#include <errno.h>
#include <string.h>

enum {
    BLOCK = 1024,       /* floats: a few of them stay in the first-level cache; whole int8 blocks */
    BLOCK8_BYTES = BLOCK8 + sizeof(float),
    DIGIT = 1 << 11,    /* values of a digit of a magnitude; three digits make one */
    SIDES = 4,
    GROUP = 32,         /* floats that are looked at together where few of them matter */
};
static const uint32_t MAGNITUDE = 0x7fffffff, INFINITE = 0x7f800000;

size_t dlp_payload_bytes(int format, size_t n, size_t entries) {
    switch (format) {
    case FORMAT_FP32: return 4 * n;
    case FORMAT_FP16:
    case FORMAT_BF16: return 2 * n;
    case FORMAT_INT8: return n + sizeof(float) * ((n + BLOCK8 - 1) / BLOCK8);
    case FORMAT_TOPK: return (sizeof(uint32_t) + sizeof(float)) * entries;
    default: return 0;
    }
}

static inline uint32_t magnitude(float x) { return (word){.value = x}.bits & MAGNITUDE; }

/* ---- half precision ---- */

/* To nearest, ties to even; what is not a number stays so although its low bits go. */
static inline uint16_t to_bf16(float x) {
    uint32_t bits = (word){.value = x}.bits;
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 0x40;
    return (uint16_t)choose((bits & MAGNITUDE) > INFINITE, quiet, rounded);
}

/* To nearest, ties to even: the addition of 0.5 lets the processor round what becomes denormal. */
static inline uint16_t to_fp16(float x) {
    uint32_t bits = (word){.value = x}.bits, size = bits & MAGNITUDE;
    uint32_t normal = (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13;
    word shifted = {.bits = size};
    shifted.value += 0.5f;
    uint32_t small = shifted.bits - (126u << 23);
    uint32_t finite = choose(size < 113u << 23, small, normal);
    uint32_t large = choose(size > INFINITE, 0x7e00, 0x7c00);
    return (uint16_t)(choose(size >= 143u << 23, large, finite) | (bits >> 16 & 0x8000));
}

CLONES static void encode_bf16(uint16_t *restrict out, const float *restrict v, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = to_bf16(v[i]);
}

CLONES static void encode_fp16(uint16_t *restrict out, const float *restrict v, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = to_fp16(v[i]);
}

CLONES static void decode_bf16(float *restrict out, const uint16_t *restrict half, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = from_bf16(half[i]);
}

CLONES static void decode_fp16(float *restrict out, const uint16_t *restrict half, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = from_fp16(half[i]);
}

/* ---- eight bits and a scale per block ---- */

/* Magnitudes are compared as integers: NaN is the largest, so one in a block cannot hide. */
CLONES static uint32_t largest(const float *v, size_t n) {
    uint32_t most = 0;
    for (size_t i = 0; i < n; i++) most = magnitude(v[i]) > most ? magnitude(v[i]) : most;
    return most;
}

/* Adding 1.5 * 2^23 leaves the integer nearest to a small number, ties to even, in the low bits.
   Beyond 127 is what rounds up there, or belongs to a scale of few bits. */
CLONES static void quantize(int8_t *restrict out, const float *restrict v, size_t n, float scale) {
    static const word shift = {.value = 0x1.8p23f};
    for (size_t i = 0; i < n; i++) {
        word sum = {.value = v[i] / scale + shift.value};
        int32_t level = (int32_t)(sum.bits - shift.bits);
        level = level > 127 ? 127 : level;
        out[i] = (int8_t)(level < -127 ? -127 : level);
    }
}

CLONES static void dequantize(float *restrict out, const int8_t *restrict level, size_t n,
                              float scale) {
    for (size_t i = 0; i < n; i++) out[i] = scale * (float)level[i];
}

/* A block that is not finite has the scale NaN: every element of it reads as NaN. */
static void encode_int8(char *out, const float *v, size_t n) {
    for (size_t i = 0; i < n; i += BLOCK8, out += BLOCK8_BYTES) {
        size_t m = n - i < BLOCK8 ? n - i : BLOCK8;
        word most = {.bits = largest(v + i, m)};
        float scale = most.bits >= INFINITE ? __builtin_nanf("") : most.value / 127.0f;
        memcpy(out, &scale, sizeof scale);
        if (scale > 0)
            quantize((int8_t *)out + sizeof scale, v + i, m, scale);
        else
            memset(out + sizeof scale, 0, m);
    }
}

/* A part may begin and end within a block: a stripe border falls where it falls. */
static void decode_int8(float *out, const char *payload, size_t at, size_t n) {
    for (size_t end = at + n, m; at < end; at += m, out += m) {
        const char *block = payload + at / BLOCK8 * BLOCK8_BYTES;
        float scale;
        memcpy(&scale, block, sizeof scale);
        m = BLOCK8 - at % BLOCK8;
        if (m > end - at) m = end - at;
        dequantize(out, (const int8_t *)block + sizeof scale + at % BLOCK8, m, scale);
    }
}

/* ---- the largest few ---- */

typedef uint32_t histogram[SIDES][DIGIT];

/* Count a digit of the magnitudes that begin with prefix. They are few once a digit is known, so
   groups which have nothing as large are passed over. Neighbours often have the same digit; they
   are counted side by side, or each would wait for the one before it. */
static void count_digit(histogram count, const float *v, size_t n, uint32_t prefix, uint32_t known,
                        int shift, uint32_t mask) {
    for (size_t i = 0; i < n; i += GROUP) {
        size_t end = n - i < GROUP ? n : i + GROUP;
        if (prefix && largest(v + i, end - i) < prefix) continue;
        for (size_t j = i; j < end; j++)
            if ((magnitude(v[j]) & known) == prefix)
                count[j % SIDES][magnitude(v[j]) >> shift & mask]++;
    }
}

static size_t total(histogram count, uint32_t digit) {
    size_t sum = 0;
    for (int side = 0; side < SIDES; side++) sum += count[side][digit];
    return sum;
}

/* Find the magnitude of rank `entries` digit by digit: three passes, no copy, nothing to allocate.
   Return it, and in `ties` how many of that very magnitude belong to the chosen. */
static uint32_t threshold(const float *v, size_t n, size_t entries, size_t *ties) {
    static const int shifts[] = {20, 9, 0};
    size_t above = 0;
    uint32_t prefix = 0, known = 0;
    for (int d = 0; d < 3; d++) {
        histogram count = {{0}};
        uint32_t mask = d < 2 ? DIGIT - 1 : (1 << 9) - 1, digit = mask;
        count_digit(count, v, n, prefix, known, shifts[d], mask);
        for (size_t here; above + (here = total(count, digit)) < entries; digit--) above += here;
        prefix |= digit << shifts[d];
        known |= mask << shifts[d];
    }
    *ties = entries - above;
    return prefix;
}

/* Where magnitudes tie, the lower position is chosen. What is sent leaves `left`, if given. */
static void encode_topk(char *out, const float *v, float *left, size_t n, size_t entries) {
    uint32_t *positions = (uint32_t *)out;
    float *values = (float *)(out + entries * sizeof *positions);
    size_t ties, chosen = 0;
    uint32_t least = threshold(v, n, entries, &ties);
    for (size_t i = 0; i < n; i++) {
        while (i % GROUP == 0 && n - i > GROUP && largest(v + i, GROUP) < least) i += GROUP;
        if (magnitude(v[i]) < least || (magnitude(v[i]) == least && !ties)) continue;
        if (magnitude(v[i]) == least) ties--;
        positions[chosen] = (uint32_t)i;
        values[chosen++] = v[i];
        if (left) left[i] = v[i] - v[i];
    }
}

/* Return the index of the first position at or after `at`. */
size_t dlp_first_entry(const uint32_t *positions, size_t entries, size_t at) {
    size_t low = 0, high = entries;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (positions[middle] < at)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* A position below `at` or beyond the end is left out: nothing else is written, sorted or not. */
static void decode_topk(float *out, const char *payload, size_t at, size_t n, size_t entries) {
    const uint32_t *positions = (const uint32_t *)payload;
    const float *values = (const float *)(payload + entries * sizeof *positions);
    memset(out, 0, n * sizeof *out);
    for (size_t i = dlp_first_entry(positions, entries, at); i < entries; i++) {
        if (positions[i] >= at + n) break;
        if (positions[i] >= at) out[positions[i] - at] = values[i];
    }
}

/* ---- any format ---- */

/* Write to out the elements [at, at + n) of a payload. */
void dlp_unpack(int format, const void *payload, float *out, size_t at, size_t n, size_t entries) {
    const char *from = payload;
    if (!n) return;
    switch (format) {
    case FORMAT_FP32: memcpy(out, from + at * sizeof *out, n * sizeof *out); break;
    case FORMAT_FP16: decode_fp16(out, (const uint16_t *)from + at, n); break;
    case FORMAT_BF16: decode_bf16(out, (const uint16_t *)from + at, n); break;
    case FORMAT_INT8: decode_int8(out, from, at, n); break;
    case FORMAT_TOPK: decode_topk(out, from, at, n, entries); break;
    }
}

static void encode(int format, void *out, const float *v, size_t n) {
    switch (format) {
    case FORMAT_FP32: memcpy(out, v, n * sizeof *v); break;
    case FORMAT_FP16: encode_fp16(out, v, n); break;
    case FORMAT_BF16: encode_bf16(out, v, n); break;
    case FORMAT_INT8: encode_int8(out, v, n); break;
    }
}

CLONES static void add(float *restrict sum, const float *restrict x, size_t n) {
    for (size_t i = 0; i < n; i++) sum[i] = x[i] + sum[i];
}

CLONES static void subtract(float *restrict left, const float *restrict sent, size_t n) {
    for (size_t i = 0; i < n; i++) left[i] = left[i] - sent[i];
}

/* Send v = x + residual as `out`; the residual, if there is one, keeps what v lost by that.
   Return 0, or -EINVAL where the format is unknown or `entries` do not fit. */
int dlp_pack(int format, const float *x, float *residual, void *out, size_t n, size_t entries) {
    if (format < FORMAT_FP32 || format > FORMAT_TOPK) return -EINVAL;
    if (format == FORMAT_TOPK) {
        if (entries > n || n > (size_t)UINT32_MAX + 1) return -EINVAL;
        if (residual) add(residual, x, n);
        if (entries) encode_topk(out, residual ? residual : x, residual, n, entries);
        return 0;
    }
    float sent[BLOCK];
    for (size_t i = 0, m; i < n; i += m) {
        m = n - i < BLOCK ? n - i : BLOCK;
        char *to = (char *)out + dlp_payload_bytes(format, i, 0);
        if (residual) add(residual + i, x + i, m);
        encode(format, to, residual ? residual + i : x + i, m);
        if (!residual) continue;
        dlp_unpack(format, to, sent, 0, m, 0);
        subtract(residual + i, sent, m);
    }
    return 0;
}

/* Return 0, or -EINVAL for what no pack has made: positions must ascend and stay below n. */
int dlp_check_payload(int format, const void *payload, size_t n, size_t entries) {
    const uint32_t *positions = payload;
    if (format < FORMAT_FP32 || format > FORMAT_TOPK) return -EINVAL;
    if (format != FORMAT_TOPK) return 0;
    if (entries > n) return -EINVAL;
    for (size_t i = 0; i < entries; i++)
        if (positions[i] >= n || (i && positions[i] <= positions[i - 1])) return -EINVAL;
    return 0;
}
