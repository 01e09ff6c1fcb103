/* Request/response latency over TCP: `rr serve ADDRESS PORT`, `rr run ADDRESS PORT SECONDS` prints JSON in microseconds.
 * One byte each way, one request outstanding, as netperf's TCP_RR. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BUCKETS 100000 /* one a tenth of a microsecond, up to 10 ms */

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static struct sockaddr_in address(const char *host, const char *port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
	if (inet_pton(AF_INET, host, &to.sin_addr) != 1) {
		fprintf(stderr, "rr: %s is no IPv4 address\n", host);
		exit(2);
	}
	return to;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void without_delay(int fd)
{
	int one = 1;
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
		fail("rr: TCP_NODELAY");
}

static _Noreturn void serve(const char *host, const char *port)
{
	struct sockaddr_in here = address(host, port);
	int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
	if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) ||
	    bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 8))
		fail("rr: listen");
	for (;;) {
		char byte;
		int fd = accept(listener, NULL, NULL);
		if (fd < 0)
			fail("rr: accept");
		without_delay(fd);
		while (read(fd, &byte, 1) == 1 && write(fd, &byte, 1) == 1)
			;
		close(fd);
	}
}

static int run(const char *host, const char *port, double seconds)
{
	static uint32_t histogram[BUCKETS + 1];
	struct sockaddr_in to = address(host, port);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
		fail("rr: connect");
	without_delay(fd);
	uint64_t start = now(), end = start + (uint64_t)(seconds * 1e9), before = start, count = 0;
	while (before < end) {
		char byte = 1;
		if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
			fail("rr: exchange");
		uint64_t after = now(), bucket = (after - before) / 100;
		histogram[bucket < BUCKETS ? bucket : BUCKETS]++;
		count++;
		before = after;
	}
	uint64_t sum = 0;
	double p50 = 0, p99 = 0;
	for (uint32_t i = 0; i <= BUCKETS; i++) {
		sum += histogram[i];
		if (p50 == 0 && sum * 2 >= count)
			p50 = i / 10.0;
		if (p99 == 0 && sum * 100 >= count * 99)
			p99 = i / 10.0;
	}
	printf("{\"transactions\": %llu, \"mean\": %.2f, \"p50\": %.1f, \"p99\": %.1f}\n", (unsigned long long)count,
	       (double)(before - start) / 1e3 / (double)count, p50, p99);
	close(fd);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "serve"))
		serve(argv[2], argv[3]);
	if (argc == 5 && !strcmp(argv[1], "run"))
		return run(argv[2], argv[3], atof(argv[4]));
	fprintf(stderr, "usage: rr serve ADDRESS PORT | rr run ADDRESS PORT SECONDS\n");
	return 2;
}
