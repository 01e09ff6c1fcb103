/* The whole way of a datagram, from socket payload to file, with streams, totals and time passing in any order.
 *
 * The input is a list of steps: one byte that chooses, then what that step needs. After each input the counts must add up:
 * received = stored + dropped, and, by sequence number, received + lost + missing = next.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core.h"

#define STREAMS 6u

static struct vtc_collector *collector;
static char directory[] = "/dev/shm/vtap-fuzz-XXXXXX"; /* in memory: thousands of small files a second */
static const uint8_t addresses[3][16] = {
    {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 10, 0, 0, 1},
    {0xFD, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1},
    {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 10, 0, 0, 9},
};

static void remove_directory(void)
{
    char command[sizeof directory + 16];
    vtc_stop(collector);
    vtc_free(collector);
    snprintf(command, sizeof command, "rm -rf %s", directory);
    if (system(command) != 0)
        perror(directory);
}

int LLVMFuzzerInitialize(int *count, char ***arguments)
{
    (void)count;
    (void)arguments;
    char error[256];
    if (!mkdtemp(directory))
        return 1;
    const struct vtc_config config = {
        .directory = open(directory, O_DIRECTORY | O_RDONLY),
        .max_streams = STREAMS,
        .max_taps = 2,
        .max_nodes = 2,
        .chunk_bytes = 128 << 10,
        .buffer_bytes = 512 << 10,
        .flush_ns = 1,
        .grace_ns = 1000,
        .rotate_packets = 50,
        .rotate_interfaces = 4,
        .hardware = "",
        .os = "",
        .application = "fuzz",
    };
    collector = vtc_open(&config, error, sizeof error);
    if (!collector) {
        fprintf(stderr, "%s\n", error);
        exit(1);
    }
    atexit(remove_directory);
    vtc_node_set(collector, 0, addresses[0], 2, 37);
    vtc_tap_open(collector, 0, "a", "one");
    vtc_tap_open(collector, 1, "a", "two");
    return 0;
}

struct input {
    const uint8_t *at;
    size_t left;
};

static uint32_t take(struct input *input, size_t bytes)
{
    uint32_t value = 0;
    while (bytes-- && input->left) {
        value = value << 8 | *input->at++;
        input->left--;
    }
    return value;
}

static void put32(uint8_t *at, uint32_t value)
{
    value = __builtin_bswap32(value);
    memcpy(at, &value, 4);
}

/* A datagram as our agents send it, so that the fuzzer need not find the magic numbers. */
static void valid_datagram(struct input *input)
{
    uint8_t datagram[2048] = {0x30, 0, 0x65, 0x58};
    const uint32_t key = take(input, 1) % 8, sequence = take(input, 4), length = 1 + take(input, 2) % 1500;
    put32(datagram + 4, key);
    put32(datagram + 8, sequence);
    uint8_t *trailer = datagram + 12 + length;
    put32(trailer + 8, length + take(input, 1));
    trailer[14] = 1;
    put32(trailer + 16, TRAILER_MAGIC);
    ingest(collector, VTC_GRE_UDP, addresses[take(input, 1) % 3], datagram, 12 + length + TRAILER_LENGTH);
}

static void raw_datagram(struct input *input)
{
    const enum vtc_source kind = take(input, 1) % 4;
    const uint8_t *address = addresses[take(input, 1) % 3];
    size_t length = take(input, 2);
    if (length > input->left)
        length = input->left;
    uint8_t *exact = malloc(length ? length : 1); /* so that one byte too far is seen */
    memcpy(exact, input->at, length);
    ingest(collector, kind, address, exact, length);
    free(exact);
    input->at += length;
    input->left -= length;
}

static void open_streams(void)
{
    static uint64_t incarnation;
    char error[256];
    for (uint32_t slot = 0; slot < STREAMS; slot++) {
        const struct vtc_stream_info info = {
            .key = slot,
            .tap = slot % 2,
            .direction = 1 + slot % 2,
            .incarnation = ++incarnation,
            .trailer = slot < 4,
            .name = "a/pod/eth0 ingress",
            .description = "fuzzed",
        };
        vtc_stream_open(collector, slot, &info, error, sizeof error);
    }
}

static void time_passes(uint64_t nanoseconds)
{
    collector->now_ns += nanoseconds;
    collector->drained_ns = collector->now_ns;
    collector->drops_fresh = false;
    ingest_flush(collector, 0);
    ingest_tick(collector);
    writer_drain(collector);
}

static void step(struct input *input)
{
    switch (take(input, 1) % 8) {
    case 0:
    case 1:
    case 2:
        valid_datagram(input);
        break;
    case 3:
        raw_datagram(input);
        break;
    case 4:
        time_passes(take(input, 2));
        break;
    case 5: {
        const uint32_t slot = take(input, 1) % STREAMS, sent = take(input, 4);
        vtc_stream_totals(collector, slot, sent, take(input, 4));
        break;
    }
    case 6:
        vtc_stream_close(collector, take(input, 1) % STREAMS);
        break;
    default:
        ingest_overflow(collector, take(input, 1));
    }
}

static void check(uint32_t slot)
{
    struct vtc_stream_counts counts;
    vtc_stream_counts(collector, slot, &counts);
    const struct stream_state *state = &collector->stream_states[slot];
    if (counts.received != counts.stored + counts.dropped_disk + counts.dropped_slow)
        abort();
    if (state->sequenced && state->gaps.next && counts.received + counts.lost_network + counts.lost_socket + state->gaps.missing < state->gaps.next)
        abort();
    struct gaps repaired = state->gaps;
    gaps_repair(&repaired);
    if (repaired.missing != state->gaps.missing)
        abort();
}

/* Files may not pile up while the fuzzer runs for long. */
static void remove_files(void)
{
    static unsigned inputs;
    char command[sizeof directory + 32];
    if (++inputs % 4096)
        return;
    snprintf(command, sizeof command, "rm -rf %s/a/*/*.pcapng", directory);
    if (system(command) != 0)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    open_streams();
    while (input.left)
        step(&input);
    time_passes(10000);
    for (uint32_t slot = 0; slot < STREAMS; slot++)
        check(slot);
    remove_files();
    return 0;
}
