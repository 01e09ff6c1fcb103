/* Which sequence numbers of a stream arrived: one window of a bit each, 32-bit numbers on the wire extended to 64. */
#ifndef VTAP_GAPS_H
#define VTAP_GAPS_H

#include <stdint.h>

#define GAPS_WINDOW 8192u

/* A number below `base` is settled: received or lost, for good. From `base` to `next`, `missing` are still awaited.
 * The bits tell for each number of the last GAPS_WINDOW before `next` whether it arrived. All zero is a new stream. */
struct gaps {
    uint64_t next;
    uint64_t base;
    uint64_t missing;
    uint64_t bits[GAPS_WINDOW / 64];
};

enum gaps_verdict {
    GAPS_NEW = 0,
    GAPS_DUPLICATE = 1,
    GAPS_LATE = 2 /* counted as lost before it came, or too old to know */
};

/* `lost` grows by the numbers that fall out of the window unseen. */
enum gaps_verdict gaps_arrive_slowly(struct gaps *gaps, uint32_t sequence, uint64_t *lost);

/* The 64-bit number nearest to `about` whose low half is `sequence`; negative ones (before the first) come out as UINT64_MAX. */
uint64_t gaps_nearest(uint64_t about, uint32_t sequence);

/* The nearest to `next`. In a window that saw nothing it is `sequence` itself: a collector may meet a stream when it is old. */
uint64_t gaps_extend(const struct gaps *gaps, uint32_t sequence);

/* The sender has used all numbers below `next`: those that never came are awaited from now on. */
void gaps_expect(struct gaps *gaps, uint64_t next, uint64_t *lost);

/* Give up waiting for numbers below `upto` (at most `next`): what is missing there is lost. */
uint64_t gaps_settle(struct gaps *gaps, uint64_t upto);

/* Makes `missing` and `base` agree with the bits, after a process that died between two writes. */
void gaps_repair(struct gaps *gaps);

static inline enum gaps_verdict gaps_arrive(struct gaps *gaps, uint32_t sequence, uint64_t *lost)
{
    const uint64_t next = gaps->next;
    if (__builtin_expect(sequence == (uint32_t)next && gaps->missing == 0, 1)) {
        gaps->bits[next / 64 % (GAPS_WINDOW / 64)] |= 1ull << (next % 64);
        gaps->next = next + 1;
        gaps->base = next + 1;
        return GAPS_NEW;
    }
    return gaps_arrive_slowly(gaps, sequence, lost);
}

#endif
