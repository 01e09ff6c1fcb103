/* The C core of vtap-collector: everything that happens per packet. Python drives it through these functions (native.py).
 *
 * One receive thread takes datagrams off the sockets, accounts for them and appends pcapng blocks to a tap's chunk. A full
 * or 20 ms old chunk goes to the writer thread, which owns the files, and to each live consumer, which owns a thread and a
 * bounded queue. Chunks are shared and counted by reference, so that a consumer costs the receive thread nothing per packet.
 *
 *   sockets ─► receive thread ─► chunk ─┬─► writer thread ─► DIR/NAMESPACE/TAP/….pcapng
 *                                       └─► live thread ─► select ─► socket pair ─► HTTP
 *
 * Counters live in a shared mapping of DIR/.state/streams, so that they survive the process; see docs/decisions.
 * Functions that can fail return -1 and leave one sentence in the error buffer. Slots are the caller's: 0 … capacity − 1.
 */
#ifndef VTAP_COLLECTOR_H
#define VTAP_COLLECTOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VTC_ABI 3
#define VTC_ADDRESSES 16
#define VTC_NO_TAP UINT32_MAX

struct vtc_collector;

enum vtc_sink { VTC_SINK_FILES = 0, VTC_SINK_COUNT = 1 };

enum vtc_source {
    VTC_GRE_UDP = 0,  /* a UDP socket; the payload starts with GRE */
    VTC_VXLAN = 1,    /* a UDP socket; the payload starts with VXLAN */
    VTC_GRE_RAW4 = 2, /* a raw IPv4 socket of protocol 47; the payload starts with the IPv4 header */
    VTC_GRE_RAW6 = 3, /* a raw IPv6 socket of protocol 47; the payload starts with GRE */
    VTC_RING = 4,     /* a packet socket (SOCK_DGRAM); datagrams as those of VTC_GRE_UDP, captured on an interface */
};

struct vtc_config {
    int32_t directory; /* file descriptor of DIR */
    uint32_t sink;
    uint32_t max_streams, max_taps, max_nodes;
    uint32_t chunk_bytes;
    uint64_t buffer_bytes;  /* chunks that wait for the writer, at most */
    uint64_t flush_ns;      /* a block waits at most this long for its chunk to fill */
    uint64_t grace_ns;      /* how long a missing copy is awaited */
    uint64_t statistics_ns; /* between Interface Statistics Blocks */
    uint64_t rotate_bytes, rotate_ns, rotate_packets; /* 0: never for this reason */
    uint64_t rotate_interfaces; /* or twice the tap's open streams, should that be more */
    const char *hardware, *os, *application;          /* of the Section Header Block */
};

struct vtc_stream_info {
    uint32_t key;
    uint32_t node;
    uint32_t tap;
    uint32_t direction; /* enum pcapng_direction */
    uint64_t incarnation;
    uint32_t snap_length;
    uint32_t trailer;
    const char *name, *description; /* of the Interface Description Block */
};

/* All in wire packets. */
struct vtc_stream_counts {
    uint64_t received, received_bytes;
    uint64_t lost_network, lost_socket;
    uint64_t stored;
    uint64_t dropped_disk, dropped_slow, dropped_crash;
    uint64_t duplicate, late;
    uint64_t in_flight; /* sent or skipped, neither received nor given up yet */
    uint64_t next_sequence;
    uint64_t closed;
};

struct vtc_counts {
    uint64_t datagrams;
    uint64_t unannounced_key, unannounced_address;
    uint64_t malformed;
    uint64_t socket_overflow;     /* by SK_MEMINFO_DROPS, the counter that SO_RXQ_OVFL reports */
    uint64_t socket_unexplained;  /* of these, the ones no stream missed: unannounced, duplicate or late ones */
    uint64_t receive_errors;
    uint64_t receive_batches;
    uint64_t write_errors;
    uint64_t last_write_error; /* errno, 0 since the last success */
    uint64_t chunks_used, chunks_allocated;
    uint64_t files_opened;
    uint64_t captured;            /* of the datagrams, those that came through a ring */
    uint64_t wakeups;             /* of the receive thread, out of waiting for datagrams */
    uint64_t ring_outages;        /* how often a ring's interface went down or vanished */
    uint64_t written_bytes;       /* to capture files */
    uint64_t rings_down;          /* bit 0: that of the ring added first */
};

struct vtc_select {
    const char *filter; /* libpcap syntax; NULL or empty: everything */
    uint64_t every_ns;  /* `count` packets of each interface every so often; 0: `count` in all */
    uint64_t count;     /* 0: no limit */
};

struct vtc_consumer_counts {
    uint64_t offered;    /* packets in chunks that reached the consumer */
    uint64_t selected;   /* of these, passed on */
    uint64_t dropped;    /* packets in chunks that its full queue refused */
    uint64_t bytes;
    uint64_t finished;
};

struct vtc_file_summary {
    uint64_t packets;
    uint64_t first_ns, last_ns;
    uint64_t whole_bytes; /* up to the end of the last whole block */
};

uint32_t vtc_abi(void);
struct vtc_collector *vtc_open(const struct vtc_config *config, char *error, size_t error_size);
int vtc_add_socket(struct vtc_collector *collector, uint32_t source, int fd, uint32_t receive_buffer, char *error, size_t error_size);
/* Capture on an interface, by a ring of `bytes`, what datagrams for `port` ring.c says, of those that match the libpcap expression
 * `only` (empty: all). `fd`: an unbound packet socket, taken over or closed. All rings have the same port and expression. */
int vtc_add_ring(struct vtc_collector *collector, int fd, uint32_t interface, uint32_t port, const char *only, uint32_t bytes, char *error,
                 size_t error_size);
/* Two UDP sockets bound to the same address with SO_REUSEPORT: the second swallows what a ring takes. */
int vtc_divert(int first, int second, uint16_t port, char *error, size_t error_size);
int vtc_start(struct vtc_collector *collector, char *error, size_t error_size);
/* Drains the sockets, closes the files with their last statistics, ends all threads. */
void vtc_stop(struct vtc_collector *collector);
void vtc_free(struct vtc_collector *collector);

int vtc_node_set(struct vtc_collector *collector, uint32_t node, const uint8_t *addresses, uint32_t count, int64_t tai_offset);
int vtc_tap_open(struct vtc_collector *collector, uint32_t tap, const char *tap_namespace, const char *name);
/* -1 while the tap has streams, consumers or an open file. */
int vtc_tap_release(struct vtc_collector *collector, uint32_t tap);
/* 1 where counts of the same incarnation are taken up again, 0 where the stream is new. */
int vtc_stream_open(struct vtc_collector *collector, uint32_t slot, const struct vtc_stream_info *info, char *error, size_t error_size);
/* No more copies are sent: settle after the grace time. */
int vtc_stream_close(struct vtc_collector *collector, uint32_t slot);
/* -1 while copies of it are still to be written. */
int vtc_stream_release(struct vtc_collector *collector, uint32_t slot);
int vtc_stream_totals(struct vtc_collector *collector, uint32_t slot, uint64_t sent, uint32_t next_sequence);
int vtc_stream_counts(struct vtc_collector *collector, uint32_t slot, struct vtc_stream_counts *counts);
void vtc_counts(struct vtc_collector *collector, struct vtc_counts *counts);
/* The name of the file that is being written, empty where there is none. */
int vtc_tap_file(struct vtc_collector *collector, uint32_t tap, char *name, size_t size);

/* Let the files grow until `written_bytes` reaches this, or a chunk more; `wake`, an eventfd of the caller's, tells when they have.
 * The writer then waits a second for more, and after that drops as it does for a full disk. UINT64_MAX, the default: no limit. */
void vtc_allow_bytes(struct vtc_collector *collector, uint64_t until, int wake);
/* Have files closed that were deleted while they were written: their space is free when this returns, if that takes no second. */
void vtc_close_deleted(struct vtc_collector *collector);

/* Writes pcapng into the stream socket `fd`, which it takes over, until that is closed at the other end. */
int vtc_live_open(struct vtc_collector *collector, uint32_t tap, const struct vtc_select *select, int fd, char *error, size_t error_size);
int vtc_live_counts(struct vtc_collector *collector, int consumer, struct vtc_consumer_counts *counts);
void vtc_live_close(struct vtc_collector *collector, int consumer);

int vtc_check_filter(const char *filter, char *error, size_t error_size);
/* Joins the given pcapng files into one section and writes what `select` lets pass into the stream socket `out`. */
int vtc_replay(const int *files, size_t count, const struct vtc_select *select, int out, struct vtc_consumer_counts *counts, char *error,
               size_t error_size);
int vtc_scan(int fd, struct vtc_file_summary *summary);

#endif
