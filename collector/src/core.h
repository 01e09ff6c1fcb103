/* What the modules of the core share. Who may touch what is said at each member. */
#ifndef VTAP_CORE_H
#define VTAP_CORE_H

#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <pcap/pcap.h>
#include <stdatomic.h>

#include "gaps.h"
#include "pcapng.h"
#include "vtap_collector.h"
#include "wire.h"

#define NS_PER_SECOND 1000000000ull
#define MAX_IDB 4096u
#define MAX_SOURCES 16
#define MAX_CONSUMERS 16
#define CONSUMER_CHUNKS 128u
#define CONSUMER_ALLOWANCE (CONSUMER_CHUNKS + 1) /* its queue, and the chunk it is sending */
#define CONSUMER_BYTES (8u << 20)
#define MAX_FRAME 65535u
#define OUTLET_INTERFACES 4096u /* of a section; a reader's next one begins beyond them */
#define NAMESPACE_SIZE 64
#define TAP_NAME_SIZE 256
#define FILE_NAME_SIZE 256

/* Counters have one writing thread each and any number of readers. */
#define COUNT(counter, by) __atomic_store_n(&(counter), (counter) + (by), __ATOMIC_RELAXED)
#define PUT(counter, value) __atomic_store_n(&(counter), (value), __ATOMIC_RELAXED)
#define GET(counter) __atomic_load_n(&(counter), __ATOMIC_RELAXED)

/* ---- state.c: what survives the process, mapped from DIR/.state/streams ---- */

/* The window of sequence numbers is ahead of the counts: a copy is being counted, or numbers are being given up. */
enum judging { JUDGING_NOTHING = 0, JUDGING_ARRIVAL = 1, JUDGING_LOSS = 2 };

struct stream_state {
    uint32_t in_use, key;
    uint64_t incarnation;
    uint32_t tap, sequenced;
    uint64_t opened_ns;
    uint32_t judging; /* enum judging; receive thread */
    /* receive thread, under the table lock */
    _Alignas(64) uint64_t received;
    uint64_t received_bytes, lost_network, lost_socket, duplicate, late, dropped_slow;
    uint64_t total_sent, total_next;
    struct gaps gaps;
    /* writer thread */
    _Alignas(64) uint64_t stored;
    uint64_t dropped_disk, dropped_crash;
    uint64_t file_number; /* the file whose interface `interface` this stream is; 0 none */
    uint64_t interface;
    uint64_t stored_before; /* `stored` when it joined that file */
};

struct tap_state {
    uint32_t in_use, file_open;
    uint64_t next_number; /* files begun so far; receive thread */
    uint64_t file_number; /* of `file`; writer thread */
    char tap_namespace[NAMESPACE_SIZE];
    char name[TAP_NAME_SIZE];
    char file[FILE_NAME_SIZE];
};

struct state_header {
    uint64_t magic;
    uint32_t version, stream_size, tap_size, max_streams, max_taps;
    uint32_t stopped_cleanly; /* by the last process: nothing was in its buffers, and its counts are as it left them */
};

/* ---- chunk.c: blocks on their way from the receive thread to the sinks ---- */

/* An interface of a section: a stream, and the block that describes it. */
struct iface {
    atomic_uint references;
    uint32_t slot;
    uint64_t uid; /* tells a slot's streams apart */
    uint64_t opened_ns;
    uint32_t idb_length;
    uint8_t idb[];
};

/* What one file holds. Interfaces are only ever added; `lock` guards the array. */
struct section {
    atomic_uint references;
    struct tap *tap;
    uint64_t number;
    pthread_mutex_t lock;
    uint32_t count, capacity;
    struct iface **ifaces;
};

struct chunk {
    atomic_uint references;
    struct chunk *next; /* the writer's queue */
    struct section *section;
    uint64_t born_ns;
    uint32_t interfaces; /* of the section, when the chunk was sealed */
    uint32_t used;
    uint32_t packets;
    bool ends_section;
    uint8_t *data; /* NULL in a chunk that only ends a section */
};

struct pool {
    pthread_mutex_t lock;
    uint8_t **free;
    uint32_t free_count, capacity, allocated, limit, chunk_bytes;
};

/* ---- table.c ---- */

struct node {
    uint32_t addresses;
    uint8_t address[VTC_ADDRESSES][16]; /* IPv4 as ::ffff:a.b.c.d */
    int64_t tai_ns;
};

/* Under the table lock, but for `file`, which is the writer's. */
struct tap {
    struct tap_state *state;
    uint32_t index, streams, consumers;
    bool in_use, dirty;
    struct tap *next_dirty;
    struct section *section;
    struct chunk *chunk;
    uint64_t bytes, packets, started_ns; /* of the section */
    atomic_uint file_open;
    struct output {
        int fd;
        uint64_t offset;
        uint32_t interfaces;
        struct section *section;
        uint64_t statistics_ns, retry_ns;
        uint64_t offset_at_statistics;
    } file;
};

/* Under the table lock. */
struct stream {
    uint32_t slot, key;
    uint64_t uid;
    struct stream *next; /* of the same hash bucket, newest first */
    struct stream_state *state;
    struct tap *tap;
    struct node *node;
    struct iface *iface;
    uint64_t section; /* number of the section whose interface `interface` it is */
    uint32_t interface, direction, snap_length;
    bool trailer, open, closing;
    uint64_t closing_ns;
    uint64_t mark_ns, mark_next, mark_total, mark_sent; /* 0: no mark set */
};

/* ---- live.c ---- */

struct selector {
    bool filtered;
    struct bpf_program program;
    uint64_t every_ns, count;
    uint64_t selected;
};

/* One pcapng section on its way out through a socket: numbers interfaces in its own way, batches, selects. */
struct outlet {
    int fd;
    struct selector selector;
    struct vtc_consumer_counts counts;
    uint8_t *buffer;
    uint32_t used;
    uint32_t interfaces, capacity;
    const struct vtc_config *config; /* of the section header */
    struct outlet_interface {
        uint64_t uid, window_ns, taken;
    } *interface;
    bool broken;
};

struct consumer {
    struct vtc_collector *collector;
    atomic_bool in_use, stopping;
    int id;
    struct tap *tap; /* NULL: all */
    pthread_t thread;
    struct outlet outlet;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake;
    struct chunk *queue[CONSUMER_CHUNKS];
    uint32_t head, queued;
    uint64_t queued_bytes;
    uint64_t dropped;
    uint64_t *dropped_by_slot; /* written under `lock` */
};

/* ---- ring.c ---- */

#define RING_ONLY_SIZE 512u
#define RING_RETIRE_NS 4000000ull /* a block waits at most this long for its packets */

struct ring {
    uint8_t *map;
    size_t bytes;
    uint32_t blocks, next;
    char name[IFNAMSIZ]; /* by which the interface is found again */
    int interface;       /* index */
    bool down; /* nothing comes through the interface, or there is none */
    uint64_t outages;
};

/* ---- receive.c ---- */

struct source {
    enum vtc_source kind;
    int fd;
    bool grouped; /* UDP_GRO is on */
    bool shared;  /* the first of two, see ring.c */
    uint64_t drops;
    struct ring ring;
    struct mmsghdr *messages;
    struct iovec *vectors;
    struct sockaddr_storage *names;
    uint8_t *buffers, *controls;
};

struct vtc_collector {
    struct vtc_config config;
    int state_fd;
    void *state_map;
    size_t state_size;
    struct state_header *state_header;
    struct stream_state *stream_states;
    struct tap_state *tap_states;
    struct pool pool;

    pthread_mutex_t table_lock; /* guards taps, streams, nodes and consumers; the receive thread holds it for a batch */
    struct tap *taps;
    struct tap *dirty; /* taps whose chunk holds blocks */
    struct stream *streams;
    struct stream **buckets;
    uint32_t bucket_mask;
    struct node *nodes;
    uint64_t next_uid;
    uint32_t streams_used, taps_used; /* slots from here on were never opened */
    struct stream *cached;
    uint8_t cached_address[16];
    struct consumer consumers[MAX_CONSUMERS];
    uint32_t consumer_count;

    /* receive thread */
    struct source sources[MAX_SOURCES];
    uint32_t source_count;
    uint16_t ring_port; /* one for all rings, as is what else is asked of their datagrams */
    char ring_only[RING_ONLY_SIZE];
    pthread_t receiver;
    bool receiver_started, writer_started;
    atomic_bool stopping;
    uint64_t now_ns, real_ns; /* CLOCK_MONOTONIC and CLOCK_REALTIME, once a batch */
    uint64_t drained_ns;      /* when the sockets were last seen empty */
    uint64_t pool_ns;         /* when the youngest overflow was seen */
    uint64_t overflow_pool;   /* overflows that no gap explains yet */
    bool drops_fresh;

    pthread_t writer;
    pthread_mutex_t queue_lock;
    pthread_cond_t queue_wake;
    struct chunk *queue_head, *queue_tail;
    atomic_bool writer_stopping;
    uint64_t allowed_bytes;    /* of write_counts.written_bytes */
    int wake;                  /* eventfd, -1 for none */
    bool look_now;             /* files have been deleted; under queue_lock */
    pthread_cond_t looked;     /* look_now has been seen to */
    uint64_t refused_until_ns; /* writer thread: chunks are dropped until then for want of allowed bytes */

    _Alignas(64) struct vtc_counts receive_counts; /* receive thread */
    _Alignas(64) struct vtc_counts write_counts;   /* writer thread */
};

uint64_t clock_ns(clockid_t clock);
int fail(char *error, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

int state_open(struct vtc_collector *collector, char *error, size_t error_size);
void state_close(struct vtc_collector *collector);
void state_recover(struct vtc_collector *collector);
void state_stopped(struct vtc_collector *collector);

int pool_init(struct pool *pool, uint32_t chunk_bytes, uint64_t bytes);
void pool_allow(struct pool *pool, int64_t chunks);
void pool_destroy(struct pool *pool);
struct chunk *chunk_take(struct pool *pool, struct section *section, uint64_t now_ns);
struct chunk *chunk_end(struct section *section);
void chunk_put(struct pool *pool, struct chunk *chunk);
struct section *section_new(struct tap *tap, uint64_t number);
int section_add(struct section *section, struct iface *iface);
struct iface *section_iface(struct section *section, uint32_t index);
void section_put(struct section *section);
struct iface *iface_new(uint32_t slot, uint64_t uid, uint64_t opened_ns, const struct vtc_stream_info *info);
void iface_put(struct iface *iface);

struct stream *table_find(struct vtc_collector *collector, uint32_t key, const uint8_t address[16], bool *key_known);
void table_remove(struct vtc_collector *collector, struct stream *stream);

void ingest(struct vtc_collector *collector, enum vtc_source kind, const uint8_t address[16], const uint8_t *payload, size_t length);
void ingest_tick(struct vtc_collector *collector);
/* Of a stream that is no longer open: what its totals tell and never came is lost. */
void ingest_last_word(struct vtc_collector *collector, struct stream_state *state);
void ingest_flush(struct vtc_collector *collector, uint64_t older_than_ns);
void ingest_end_section(struct vtc_collector *collector, struct tap *tap);
void ingest_overflow(struct vtc_collector *collector, uint64_t drops);
uint64_t receive_refresh_drops(struct vtc_collector *collector);
int ring_open(struct ring *ring, int fd, uint32_t interface, uint16_t port, const char *only, uint32_t bytes);
void ring_close(struct ring *ring);
/* Takes note of an interface that went down or came back. True where it came back under another index. */
bool ring_look(struct ring *ring, int fd);
/* `first` of two sockets leaves to the second what the rings of these interfaces take. */
int ring_divert(int first, uint16_t port, const char *only, const int *interfaces, uint32_t count);
/* At most `most` blocks; returns how many were ready. */
uint32_t ring_receive(struct vtc_collector *collector, struct ring *ring, uint32_t most);
uint64_t ring_new_drops(int fd);
/* `packet` starts with the IP header of a packet that fits the ring's rule, but for lengths and checksum, which are checked here. */
bool ring_unwrap(const uint8_t *packet, size_t length, uint8_t address[16], const uint8_t **payload, size_t *payload_length);
void *receive_run(void *collector);
/* What the thread does in one pass, for a collector without threads. False where a source has more. */
bool receive_pass(struct vtc_collector *collector);
void receive_close(struct vtc_collector *collector);

void writer_push(struct vtc_collector *collector, struct chunk *chunk);
/* Writes all that is queued, on the caller's thread. */
void writer_drain(struct vtc_collector *collector);
void *writer_run(void *collector);
void stream_statistics(const struct stream_state *state, struct pcapng_statistics *statistics);
int open_beneath(int directory, const char *tap_namespace, const char *tap, bool create);

int selector_init(struct selector *selector, const struct vtc_select *select, char *error, size_t error_size);
void selector_destroy(struct selector *selector);
int outlet_init(struct outlet *outlet, int fd, const struct vtc_select *select, char *error, size_t error_size);
void outlet_destroy(struct outlet *outlet);
void outlet_header(struct outlet *outlet, const struct vtc_config *config);
uint32_t outlet_known(const struct outlet *outlet, uint64_t uid);
uint32_t outlet_interface(struct outlet *outlet, uint64_t uid, const uint8_t *idb, uint32_t idb_length);
void outlet_packet(struct outlet *outlet, uint32_t interface, const struct pcapng_block *block);
void outlet_statistics(struct outlet *outlet, uint32_t interface, const struct pcapng_block *block);
void outlet_put(struct outlet *outlet, const uint8_t *bytes, uint32_t length);
void outlet_flush(struct outlet *outlet);
bool outlet_done(const struct outlet *outlet);
void live_offer(struct vtc_collector *collector, struct tap *tap, struct chunk *chunk);

#endif
