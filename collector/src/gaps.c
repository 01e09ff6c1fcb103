#include "gaps.h"

#include <stdbool.h>

#define WORDS (GAPS_WINDOW / 64)

static inline uint64_t *word_of(struct gaps *gaps, uint64_t number) { return &gaps->bits[number / 64 % WORDS]; }

static inline bool arrived(struct gaps *gaps, uint64_t number) { return *word_of(gaps, number) >> (number % 64) & 1; }

/* The bits of one word that belong to [from, to), where both lie in the word that starts at `from` rounded down to 64. */
static inline uint64_t span_mask(uint64_t from, uint64_t to)
{
    const uint64_t count = to - from;
    return (count >= 64 ? ~0ull : (1ull << count) - 1) << (from % 64);
}

static inline uint64_t word_end(uint64_t from, uint64_t to)
{
    const uint64_t end = (from | 63) + 1;
    return end < to ? end : to;
}

/* At most GAPS_WINDOW numbers. */
static void clear(struct gaps *gaps, uint64_t from, uint64_t to)
{
    for (uint64_t end; from < to; from = end) {
        end = word_end(from, to);
        *word_of(gaps, from) &= ~span_mask(from, end);
    }
}

static uint64_t count_missing(struct gaps *gaps, uint64_t from, uint64_t to)
{
    uint64_t missing = 0;
    for (uint64_t end; from < to; from = end) {
        end = word_end(from, to);
        missing += (uint64_t)__builtin_popcountll(~*word_of(gaps, from) & span_mask(from, end));
    }
    return missing;
}

uint64_t gaps_settle(struct gaps *gaps, uint64_t upto)
{
    if (upto > gaps->next)
        upto = gaps->next;
    if (upto <= gaps->base)
        return 0;
    const uint64_t lost = gaps->missing ? count_missing(gaps, gaps->base, upto) : 0;
    gaps->missing -= lost;
    gaps->base = gaps->missing ? upto : gaps->next;
    return lost;
}

/* Moves `next` to `to`, everything between still missing. */
static void advance(struct gaps *gaps, uint64_t to, uint64_t *lost)
{
    const uint64_t oldest = to > GAPS_WINDOW ? to - GAPS_WINDOW : 0;
    const uint64_t from = gaps->next;
    *lost += gaps_settle(gaps, oldest);
    if (from < oldest) { /* the gap alone is wider than the window */
        *lost += oldest - from;
        gaps->base = oldest;
        clear(gaps, oldest, to);
        gaps->missing = to - oldest;
    } else {
        clear(gaps, from, to);
        gaps->missing += to - from;
    }
    gaps->next = to;
}

uint64_t gaps_nearest(uint64_t about, uint32_t sequence)
{
    const int64_t delta = (int32_t)(sequence - (uint32_t)about);
    return delta < 0 && (uint64_t)-delta > about ? UINT64_MAX : about + (uint64_t)delta;
}

uint64_t gaps_extend(const struct gaps *gaps, uint32_t sequence)
{
    return gaps->next ? gaps_nearest(gaps->next, sequence) : sequence;
}

void gaps_expect(struct gaps *gaps, uint64_t next, uint64_t *lost)
{
    if (next > gaps->next)
        advance(gaps, next, lost);
}

static void mark(struct gaps *gaps, uint64_t number) { *word_of(gaps, number) |= 1ull << (number % 64); }

enum gaps_verdict gaps_arrive_slowly(struct gaps *gaps, uint32_t sequence, uint64_t *lost)
{
    const uint64_t number = gaps_extend(gaps, sequence);
    if (number == UINT64_MAX)
        return GAPS_LATE;
    if (number >= gaps->next) {
        advance(gaps, number + 1, lost);
    } else {
        if (gaps->next - number > GAPS_WINDOW)
            return GAPS_LATE;
        if (arrived(gaps, number))
            return GAPS_DUPLICATE;
        if (number < gaps->base) {
            mark(gaps, number);
            return GAPS_LATE;
        }
    }
    mark(gaps, number);
    if (--gaps->missing == 0)
        gaps->base = gaps->next;
    return GAPS_NEW;
}

void gaps_repair(struct gaps *gaps)
{
    if (gaps->base > gaps->next)
        gaps->base = gaps->next;
    if (gaps->next - gaps->base > GAPS_WINDOW)
        gaps->base = gaps->next - GAPS_WINDOW;
    gaps->missing = count_missing(gaps, gaps->base, gaps->next);
    if (gaps->missing == 0)
        gaps->base = gaps->next;
}
