/* The writer thread: owns the files. Every write is at a known offset, so that a full disk leaves whole blocks behind. */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define RETRY_NS (100 * NS_PER_SECOND / 1000)
#define LONGEST_NAME_PART 200

void writer_push(struct vtc_collector *collector, struct chunk *chunk)
{
    pthread_mutex_lock(&collector->queue_lock);
    chunk->next = NULL;
    if (collector->queue_tail)
        collector->queue_tail->next = chunk;
    else
        collector->queue_head = chunk;
    collector->queue_tail = chunk;
    pthread_cond_signal(&collector->queue_wake);
    pthread_mutex_unlock(&collector->queue_lock);
}

static struct chunk *take_all(struct vtc_collector *collector)
{
    struct chunk *head = collector->queue_head;
    collector->queue_head = collector->queue_tail = NULL;
    return head;
}

/* ---- counting what was written, block by block ---- */

enum fate { STORED, DROPPED_DISK };

static void add_fate(struct vtc_collector *collector, const struct section *section, uint32_t interface, enum fate fate, uint64_t packets)
{
    if (packets == 0 || interface >= section->count)
        return;
    struct stream_state *state = &collector->stream_states[section->ifaces[interface]->slot];
    if (fate == STORED)
        COUNT(state->stored, packets);
    else
        COUNT(state->dropped_disk, packets);
}

/* Walks the whole blocks of `data`, gives them their fate, and returns the bytes they take. */
static size_t count_blocks(struct vtc_collector *collector, struct section *section, const uint8_t *data, size_t length, enum fate fate)
{
    size_t at = 0;
    uint64_t run = 0;
    uint32_t interface = 0;
    struct pcapng_block block;
    pthread_mutex_lock(&section->lock);
    while (pcapng_read(data + at, length - at, &block) == PCAPNG_BLOCK) {
        if (block.interface != interface) {
            add_fate(collector, section, interface, fate, run);
            interface = block.interface;
            run = 0;
        }
        run++;
        at += block.length;
    }
    add_fate(collector, section, interface, fate, run);
    pthread_mutex_unlock(&section->lock);
    return at;
}

/* ---- one file ---- */

/* A directory one level below `parent`, never through a symbolic link. */
static int step_down(int parent, const char *name, bool create)
{
    if (create && mkdirat(parent, name, 0750) < 0 && errno != EEXIST)
        return -1;
    return openat(parent, name, O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

int open_beneath(int directory, const char *tap_namespace, const char *tap, bool create)
{
    const int outer = step_down(directory, tap_namespace, create);
    if (outer < 0)
        return -1;
    const int inner = step_down(outer, tap, create);
    close(outer);
    return inner;
}

static void note_error(struct vtc_collector *collector, struct output *file)
{
    COUNT(collector->write_counts.write_errors, 1);
    PUT(collector->write_counts.last_write_error, (uint64_t)errno);
    file->retry_ns = clock_ns(CLOCK_MONOTONIC) + RETRY_NS;
}

/* Returns the bytes that reached the file; fewer than `length` after an error, which is then noted. */
static size_t write_at(struct vtc_collector *collector, struct output *file, const uint8_t *data, size_t length)
{
    size_t done = 0;
    while (done < length) {
        const ssize_t wrote = pwrite(file->fd, data + done, length - done, (off_t)(file->offset + done));
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote <= 0) {
            note_error(collector, file);
            return done;
        }
        done += (size_t)wrote;
        COUNT(collector->write_counts.written_bytes, (uint64_t)wrote);
    }
    return done;
}

static void cut(struct output *file)
{
    /* Should this fail too, the next write starts at `offset` all the same. */
    while (ftruncate(file->fd, (off_t)file->offset) < 0 && errno == EINTR)
        ;
}

/* All or nothing: for blocks that are no packets. */
static bool write_whole(struct vtc_collector *collector, struct output *file, const uint8_t *data, size_t length)
{
    if (write_at(collector, file, data, length) == length) {
        file->offset += length;
        return true;
    }
    cut(file);
    return false;
}

static void name_file(char *name, const struct tap_state *tap, uint64_t number)
{
    const time_t now = (time_t)(clock_ns(CLOCK_REALTIME) / NS_PER_SECOND);
    struct tm utc;
    char stamp[32];
    gmtime_r(&now, &utc);
    strftime(stamp, sizeof stamp, "%Y%m%dT%H%M%SZ", &utc);
    snprintf(name, FILE_NAME_SIZE, "%.*s-%s-%llu.pcapng", LONGEST_NAME_PART, tap->name, stamp, (unsigned long long)number);
}

static bool write_section_header(struct vtc_collector *collector, struct output *file)
{
    const struct vtc_config *config = &collector->config;
    uint8_t header[MAX_IDB];
    const size_t length = pcapng_put_shb(header, sizeof header, config->hardware, config->os, config->application);
    return length && write_whole(collector, file, header, length);
}

static bool open_output(struct vtc_collector *collector, struct tap *tap, struct section *section)
{
    struct output *file = &tap->file;
    struct tap_state *state = tap->state;
    char name[FILE_NAME_SIZE];
    if (file->retry_ns && clock_ns(CLOCK_MONOTONIC) < file->retry_ns)
        return false;
    const int directory = open_beneath(collector->config.directory, state->tap_namespace, state->name, true);
    if (directory < 0) {
        note_error(collector, file);
        return false;
    }
    name_file(name, state, section->number);
    file->fd = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0640);
    *file = (struct output){.fd = file->fd, .retry_ns = file->retry_ns, .statistics_ns = clock_ns(CLOCK_MONOTONIC)};
    if (file->fd < 0) {
        note_error(collector, file);
    } else if (!write_section_header(collector, file)) {
        unlinkat(directory, name, 0);
        close(file->fd);
        file->fd = -1;
    }
    close(directory);
    if (file->fd < 0)
        return false;
    memcpy(state->file, name, sizeof name);
    state->file_number = section->number;
    __atomic_store_n(&state->file_open, 1, __ATOMIC_RELEASE);
    atomic_store(&tap->file_open, 1);
    atomic_fetch_add(&section->references, 1);
    file->section = section;
    COUNT(collector->write_counts.files_opened, 1);
    return true;
}

/* From here on a packet of this interface in the file is this stream's; see recount() in state.c. */
static void remember_interface(struct vtc_collector *collector, const struct iface *iface, uint64_t number, uint32_t interface)
{
    struct stream_state *state = &collector->stream_states[iface->slot];
    state->stored_before = state->stored;
    state->interface = interface;
    __atomic_store_n(&state->file_number, number, __ATOMIC_RELEASE);
}

static bool write_interfaces(struct vtc_collector *collector, struct output *file, uint32_t upto)
{
    for (; file->interfaces < upto; file->interfaces++) {
        const struct iface *iface = section_iface(file->section, file->interfaces);
        if (!iface || !write_whole(collector, file, iface->idb, iface->idb_length))
            return false;
        remember_interface(collector, iface, file->section->number, file->interfaces);
    }
    return true;
}

void stream_statistics(const struct stream_state *state, struct pcapng_statistics *statistics)
{
    const uint64_t received = GET(state->received);
    const uint64_t lost_socket = GET(state->lost_socket);
    const uint64_t stored = GET(state->stored);
    *statistics = (struct pcapng_statistics){
        .start_ns = state->opened_ns,
        .end_ns = clock_ns(CLOCK_REALTIME),
        .interface_received = received + lost_socket + GET(state->lost_network),
        .interface_dropped = GET(state->lost_network),
        .accepted = received + lost_socket,
        .system_dropped = lost_socket + GET(state->dropped_disk) + GET(state->dropped_slow) + GET(state->dropped_crash),
        .delivered = stored,
    };
}

static void write_statistics(struct vtc_collector *collector, struct output *file)
{
    uint8_t block[256];
    for (uint32_t index = 0; index < file->interfaces; index++) {
        const struct iface *iface = section_iface(file->section, index);
        if (!iface || GET(collector->streams[iface->slot].uid) != iface->uid)
            continue; /* the slot has a new owner; this stream's last statistics are in the file already */
        struct pcapng_statistics statistics;
        stream_statistics(&collector->stream_states[iface->slot], &statistics);
        const size_t length = pcapng_put_isb(block, sizeof block, index, statistics.end_ns, &statistics);
        if (!length || !write_whole(collector, file, block, length))
            break;
    }
    file->statistics_ns = clock_ns(CLOCK_MONOTONIC);
}

static void close_output(struct vtc_collector *collector, struct tap *tap)
{
    struct output *file = &tap->file;
    if (file->fd < 0)
        return;
    write_statistics(collector, file);
    close(file->fd);
    section_put(file->section);
    file->fd = -1;
    file->section = NULL;
    __atomic_store_n(&tap->state->file_open, 0, __ATOMIC_RELEASE);
    atomic_store(&tap->file_open, 0);
}

static void write_blocks(struct vtc_collector *collector, struct output *file, struct chunk *chunk)
{
    const size_t wrote = write_at(collector, file, chunk->data, chunk->used);
    const size_t whole = count_blocks(collector, chunk->section, chunk->data, wrote, STORED);
    file->offset += whole;
    if (wrote == chunk->used) {
        PUT(collector->write_counts.last_write_error, 0);
        file->retry_ns = 0;
        return;
    }
    cut(file);
    count_blocks(collector, chunk->section, chunk->data + whole, chunk->used - whole, DROPPED_DISK);
}

static bool file_ready(struct vtc_collector *collector, struct tap *tap, struct chunk *chunk)
{
    struct output *file = &tap->file;
    if (file->section != chunk->section)
        close_output(collector, tap);
    if (file->fd < 0 && !open_output(collector, tap, chunk->section))
        return false;
    if (file->retry_ns && clock_ns(CLOCK_MONOTONIC) < file->retry_ns)
        return false;
    return write_interfaces(collector, file, chunk->interfaces);
}

/* A file that somebody deleted would fill the disk unseen; the next chunk then begins a new one. */
static bool was_deleted(const struct output *file)
{
    struct stat status;
    return fstat(file->fd, &status) == 0 && status.st_nlink == 0;
}

static void look_after_files(struct vtc_collector *collector)
{
    const uint64_t now_ns = clock_ns(CLOCK_MONOTONIC);
    pthread_mutex_lock(&collector->queue_lock);
    const bool asked = collector->look_now;
    pthread_mutex_unlock(&collector->queue_lock);
    for (uint32_t index = 0; index < GET(collector->taps_used); index++) {
        struct tap *tap = &collector->taps[index];
        struct output *file = &tap->file;
        if (!atomic_load(&tap->file_open))
            continue;
        if (was_deleted(file))
            close_output(collector, tap);
        else if (now_ns - file->statistics_ns >= collector->config.statistics_ns && file->offset != file->offset_at_statistics) {
            write_statistics(collector, file);
            file->offset_at_statistics = file->offset;
        }
    }
    if (!asked)
        return;
    pthread_mutex_lock(&collector->queue_lock);
    collector->look_now = false;
    pthread_cond_broadcast(&collector->looked);
    pthread_mutex_unlock(&collector->queue_lock);
}

static struct timespec at(uint64_t time_ns)
{
    return (struct timespec){(time_t)(time_ns / NS_PER_SECOND), (long)(time_ns % NS_PER_SECOND)};
}

static bool allowed(const struct vtc_collector *collector)
{
    return GET(collector->write_counts.written_bytes) < GET(collector->allowed_bytes);
}

/* Asks for more bytes and waits for them, and meanwhile frees those of files that were deleted. */
static bool await_allowance(struct vtc_collector *collector)
{
    const uint64_t now_ns = clock_ns(CLOCK_MONOTONIC), one = 1;
    const struct timespec deadline = at(now_ns + NS_PER_SECOND);
    if (allowed(collector))
        return true;
    if (now_ns < collector->refused_until_ns || GET(collector->wake) < 0)
        return false;
    while (write(GET(collector->wake), &one, sizeof one) < 0 && errno == EINTR)
        ;
    int waited = 0;
    while (!allowed(collector) && waited != ETIMEDOUT) {
        pthread_mutex_lock(&collector->queue_lock);
        if (!collector->look_now && !allowed(collector))
            waited = pthread_cond_timedwait(&collector->queue_wake, &collector->queue_lock, &deadline);
        const bool look = collector->look_now;
        pthread_mutex_unlock(&collector->queue_lock);
        if (look)
            look_after_files(collector);
    }
    if (allowed(collector))
        return true;
    collector->refused_until_ns = clock_ns(CLOCK_MONOTONIC) + RETRY_NS;
    return false;
}

void vtc_allow_bytes(struct vtc_collector *collector, uint64_t until, int wake)
{
    pthread_mutex_lock(&collector->queue_lock);
    PUT(collector->allowed_bytes, until);
    PUT(collector->wake, wake);
    pthread_cond_signal(&collector->queue_wake);
    pthread_mutex_unlock(&collector->queue_lock);
}

void vtc_close_deleted(struct vtc_collector *collector)
{
    const struct timespec deadline = at(clock_ns(CLOCK_MONOTONIC) + NS_PER_SECOND);
    pthread_mutex_lock(&collector->queue_lock);
    collector->look_now = true;
    pthread_cond_signal(&collector->queue_wake);
    while (collector->look_now && pthread_cond_timedwait(&collector->looked, &collector->queue_lock, &deadline) != ETIMEDOUT)
        ;
    pthread_mutex_unlock(&collector->queue_lock);
}

static void write_chunk(struct vtc_collector *collector, struct chunk *chunk)
{
    struct tap *tap = chunk->section->tap;
    if (chunk->ends_section)
        close_output(collector, tap);
    else if (collector->config.sink == VTC_SINK_COUNT)
        count_blocks(collector, chunk->section, chunk->data, chunk->used, STORED);
    else if (await_allowance(collector) && file_ready(collector, tap, chunk))
        write_blocks(collector, &tap->file, chunk);
    else
        count_blocks(collector, chunk->section, chunk->data, chunk->used, DROPPED_DISK);
    chunk_put(&collector->pool, chunk);
}

static void write_queue(struct vtc_collector *collector, struct chunk *chunk)
{
    while (chunk) {
        struct chunk *next = chunk->next;
        write_chunk(collector, chunk);
        chunk = next;
    }
}

void writer_drain(struct vtc_collector *collector)
{
    pthread_mutex_lock(&collector->queue_lock);
    struct chunk *head = take_all(collector);
    pthread_mutex_unlock(&collector->queue_lock);
    write_queue(collector, head);
}

/* ---- the thread ---- */

static struct chunk *await_chunks(struct vtc_collector *collector, uint64_t until_ns)
{
    const struct timespec deadline = at(until_ns);
    pthread_mutex_lock(&collector->queue_lock);
    while (!collector->queue_head && !collector->look_now && !atomic_load(&collector->writer_stopping))
        if (pthread_cond_timedwait(&collector->queue_wake, &collector->queue_lock, &deadline) == ETIMEDOUT)
            break;
    struct chunk *head = take_all(collector);
    pthread_mutex_unlock(&collector->queue_lock);
    return head;
}

void *writer_run(void *argument)
{
    struct vtc_collector *collector = argument;
    uint64_t looked_ns = clock_ns(CLOCK_MONOTONIC);
    pthread_setname_np(pthread_self(), "vtc-write");
    for (;;) {
        struct chunk *chunks = await_chunks(collector, looked_ns + NS_PER_SECOND);
        if (!chunks && atomic_load(&collector->writer_stopping))
            return NULL;
        write_queue(collector, chunks);
        pthread_mutex_lock(&collector->queue_lock);
        const bool asked = collector->look_now;
        pthread_mutex_unlock(&collector->queue_lock);
        if (asked || clock_ns(CLOCK_MONOTONIC) - looked_ns >= NS_PER_SECOND) {
            looked_ns = clock_ns(CLOCK_MONOTONIC);
            look_after_files(collector);
        }
    }
}
