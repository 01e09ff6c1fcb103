#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define STATE_MAGIC 0x7674617073746174ull
#define STATE_VERSION 1
#define READ_AT_ONCE (4u << 20)

static size_t taps_offset(void) { return 4096; }

static size_t streams_offset(const struct vtc_config *config)
{
    return (taps_offset() + (size_t)config->max_taps * sizeof(struct tap_state) + 4095) & ~(size_t)4095;
}

static bool header_fits(const struct state_header *header, const struct vtc_config *config)
{
    return header->magic == STATE_MAGIC && header->version == STATE_VERSION &&
           header->stream_size == sizeof(struct stream_state) && header->tap_size == sizeof(struct tap_state) &&
           header->max_streams == config->max_streams && header->max_taps == config->max_taps;
}

static void write_header(struct state_header *header, const struct vtc_config *config)
{
    header->version = STATE_VERSION;
    header->stream_size = sizeof(struct stream_state);
    header->tap_size = sizeof(struct tap_state);
    header->max_streams = config->max_streams;
    header->max_taps = config->max_taps;
    header->magic = STATE_MAGIC;
}

static int lock_and_size(struct vtc_collector *collector, char *error, size_t error_size)
{
    if (flock(collector->state_fd, LOCK_EX | LOCK_NB) < 0)
        return fail(error, error_size, "the directory is in use by another collector");
    struct stat status;
    if (fstat(collector->state_fd, &status) < 0)
        return fail(error, error_size, ".state/streams: %s", strerror(errno));
    if (status.st_size != 0 && (size_t)status.st_size != collector->state_size)
        return fail(error, error_size, ".state/streams was written with another --max-streams; start with that or remove the file");
    /* Reserve the blocks now: a page of a mapping that the disk has no room for would kill the process when it is touched. */
    const int reserved = posix_fallocate(collector->state_fd, 0, (off_t)collector->state_size);
    if (reserved != 0)
        return fail(error, error_size, "cannot reserve %zu bytes for .state/streams: %s", collector->state_size, strerror(reserved));
    return 0;
}

int state_open(struct vtc_collector *collector, char *error, size_t error_size)
{
    const struct vtc_config *config = &collector->config;
    collector->state_size = streams_offset(config) + (size_t)config->max_streams * sizeof(struct stream_state);
    if (mkdirat(config->directory, ".state", 0700) < 0 && errno != EEXIST)
        return fail(error, error_size, ".state: %s", strerror(errno));
    const int directory = openat(config->directory, ".state", O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (directory < 0)
        return fail(error, error_size, ".state: %s", strerror(errno));
    collector->state_fd = openat(directory, "streams", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    close(directory);
    if (collector->state_fd < 0)
        return fail(error, error_size, ".state/streams: %s", strerror(errno));
    if (lock_and_size(collector, error, error_size) < 0)
        return -1;
    collector->state_map = mmap(NULL, collector->state_size, PROT_READ | PROT_WRITE, MAP_SHARED, collector->state_fd, 0);
    if (collector->state_map == MAP_FAILED) {
        collector->state_map = NULL;
        return fail(error, error_size, ".state/streams: %s", strerror(errno));
    }
    uint8_t *base = collector->state_map;
    collector->state_header = collector->state_map;
    collector->tap_states = (struct tap_state *)(void *)(base + taps_offset());
    collector->stream_states = (struct stream_state *)(void *)(base + streams_offset(config));
    if (!header_fits(collector->state_header, config)) {
        if (collector->state_header->magic != 0)
            return fail(error, error_size, ".state/streams was written by another version or with other limits; remove the file");
        write_header(collector->state_header, config);
    }
    return 0;
}

void state_close(struct vtc_collector *collector)
{
    if (collector->state_map)
        munmap(collector->state_map, collector->state_size);
    if (collector->state_fd >= 0)
        close(collector->state_fd);
}

/* The stream that is interface `index` of the tap's newest file; `map` has one entry an interface. */
struct interface_map {
    struct stream_state **stream;
    uint32_t count;
};

/* Of a section, see interfaces_full() in ingest.c. */
static uint32_t most_interfaces(const struct vtc_config *config)
{
    const uint64_t open = 2ull * config->max_streams + 1;
    return (uint32_t)(open > config->rotate_interfaces ? open : config->rotate_interfaces);
}

static int map_interfaces(struct vtc_collector *collector, uint32_t tap, uint64_t file_number, struct interface_map *map)
{
    const uint32_t streams = collector->config.max_streams;
    const uint32_t most = most_interfaces(&collector->config);
    *map = (struct interface_map){calloc(most, sizeof *map->stream), most};
    if (!map->stream)
        return -1;
    for (uint32_t slot = 0; slot < streams; slot++) {
        struct stream_state *state = &collector->stream_states[slot];
        if (state->in_use && state->tap == tap && state->file_number == file_number && state->interface < most) {
            map->stream[state->interface] = state;
            state->stored = state->stored_before;
        }
    }
    return 0;
}

/* Counts again what the file holds, which is the truth however the process ended, and cuts a partial block off its end. */
static void recount(int fd, const struct interface_map *map)
{
    uint8_t *buffer = malloc(READ_AT_ONCE);
    off_t whole = 0;
    if (!buffer)
        return;
    for (;;) {
        const ssize_t got = pread(fd, buffer, READ_AT_ONCE, whole);
        size_t used = 0;
        struct pcapng_block block;
        while (got > 0 && pcapng_read(buffer + used, (size_t)got - used, &block) == PCAPNG_BLOCK) {
            if (block.type == PCAPNG_EPB && block.interface < map->count && map->stream[block.interface])
                map->stream[block.interface]->stored++;
            used += block.length;
        }
        whole += (off_t)used;
        if (used == 0)
            break;
    }
    free(buffer);
    struct stat status;
    if (fstat(fd, &status) == 0 && status.st_size > whole && ftruncate(fd, whole) < 0)
        return; /* readers cope with a partial block; the counts are right either way */
}

static void recover_file(struct vtc_collector *collector, uint32_t index)
{
    struct tap_state *tap = &collector->tap_states[index];
    const int directory = open_beneath(collector->config.directory, tap->tap_namespace, tap->name, false);
    if (directory < 0)
        return;
    const int fd = openat(directory, tap->file, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    close(directory);
    if (fd < 0)
        return;
    struct interface_map map;
    if (map_interfaces(collector, index, tap->file_number, &map) == 0) {
        recount(fd, &map);
        free(map.stream);
    }
    close(fd);
}

/* A process may die between two writes that belong together, and says in `judging` where. Only that is put right; any other
 * difference is a fault of ours and stays for the ledger to show. Returns what was received by both accounts. */
static uint64_t repair_counts(struct stream_state *state)
{
    gaps_repair(&state->gaps);
    const uint64_t told = state->gaps.next - state->gaps.missing; /* received or lost, by the window */
    const uint64_t counted = state->received + state->lost_network + state->lost_socket;
    const uint32_t judging = state->judging;
    state->judging = JUDGING_NOTHING;
    if (judging && told > counted) {
        const uint64_t arrived = judging == JUDGING_ARRIVAL;
        state->received += arrived;
        state->lost_network += told - counted - arrived;
    }
    if (judging || counted <= told)
        return state->received;
    return state->received > counted - told ? state->received - (counted - told) : 0;
}

/* What had been received and is in no file died in the buffers. */
static void recover_stream(struct stream_state *state)
{
    const uint64_t received = state->sequenced && state->gaps.next ? repair_counts(state) : state->received;
    const uint64_t fate = state->stored + state->dropped_disk + state->dropped_slow + state->dropped_crash;
    if (received > fate)
        state->dropped_crash += received - fate;
}

static void terminate(struct tap_state *tap)
{
    tap->tap_namespace[NAMESPACE_SIZE - 1] = tap->name[TAP_NAME_SIZE - 1] = tap->file[FILE_NAME_SIZE - 1] = 0;
}

static void recover_streams(struct vtc_collector *collector)
{
    for (uint32_t slot = 0; slot < collector->config.max_streams; slot++)
        if (collector->stream_states[slot].in_use)
            recover_stream(&collector->stream_states[slot]);
}

void state_recover(struct vtc_collector *collector)
{
    for (uint32_t index = 0; index < collector->config.max_taps; index++) {
        struct tap_state *tap = &collector->tap_states[index];
        terminate(tap);
        if (tap->in_use && tap->file_open)
            recover_file(collector, index);
        tap->file_open = 0;
    }
    if (!collector->state_header->stopped_cleanly)
        recover_streams(collector);
    collector->state_header->stopped_cleanly = 0;
}

void state_stopped(struct vtc_collector *collector) { collector->state_header->stopped_cleanly = 1; }
