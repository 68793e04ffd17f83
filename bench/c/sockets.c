// What C programs get of the network, as JSON. The first byte of a connection to PORT says what it is for; those to
// CLOSING are closed as soon as they are accepted.
// Usage: sockets serve
//        sockets stream|echo|connect HOST COUNT   (bytes, round trips, connections)
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <unisockets.h>

#define PORT "7000"
#define CLOSING "7001"
enum { MESSAGE = 64, PIECE = 64 * 1024, WARM = 200, THREADS = 16 };

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static int read_all(int fd, char *bytes, size_t len) {
    for (size_t done = 0; done < len;) {
        ssize_t part = read(fd, bytes + done, len - done);
        if (part <= 0)
            return 0;
        done += part;
    }
    return 1;
}

static void write_all(int fd, const char *bytes, size_t len) {
    for (size_t done = 0; done < len;) {
        ssize_t part = write(fd, bytes + done, len - done);
        if (part < 0)
            fail("write");
        done += part;
    }
}

static void *answer(void *argument) {
    int fd = (int)(long)argument;
    char *bytes = malloc(PIECE);
    char what = 0;
    if (read(fd, &what, 1) == 1 && what == 's') {
        while (read(fd, bytes, PIECE) > 0) {
        }
        write_all(fd, "!", 1);
    }
    while (what == 'e' && read_all(fd, bytes, MESSAGE))
        write_all(fd, bytes, MESSAGE);
    free(bytes);
    close(fd);
    return NULL;
}

static int listener(const char *port) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    if (bind(fd, (struct sockaddr *)&any, sizeof any) != 0 || listen(fd, 1024) != 0)
        fail("listen");
    return fd;
}

static void *close_all(void *argument) {
    for (;;) {
        int accepted = accept((int)(long)argument, NULL, NULL);
        if (accepted < 0)
            fail("accept");
        close(accepted);
    }
}

static int serve(void) {
    int fd = listener(PORT), closing = listener(CLOSING);
    pthread_t thread;
    if (pthread_create(&thread, NULL, close_all, (void *)(long)closing) != 0)
        fail("a thread");
    printf("listening\n");
    fflush(stdout);
    for (;;) {
        int accepted = accept(fd, NULL, NULL);
        if (accepted < 0)
            fail("accept");
        if (pthread_create(&thread, NULL, answer, (void *)(long)accepted) != 0)
            fail("a thread");
        pthread_detach(thread);
    }
}

static struct addrinfo *resolved(const char *host, const char *port) {
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *list;
    int code = getaddrinfo(host, port, &hints, &list);
    if (code != 0) {
        fprintf(stderr, "%s: %s\n", host, gai_strerror(code));
        exit(1);
    }
    return list;
}

static int connected(const struct addrinfo *to) {
    int yes = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, to->ai_addr, to->ai_addrlen) != 0)
        fail("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    return fd;
}

static double stream(const struct addrinfo *to, long bytes) {
    char *piece = calloc(1, PIECE), last;
    int fd = connected(to);
    write_all(fd, "s", 1);
    double start = now();
    for (long left = bytes; left > 0; left -= PIECE)
        write_all(fd, piece, left < PIECE ? left : PIECE);
    shutdown(fd, SHUT_WR);
    if (!read_all(fd, &last, 1))
        fail("the answer");
    return bytes / (now() - start) / 1e6;
}

static int order(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static double echo(const struct addrinfo *to, long count) {
    char message[MESSAGE] = {0};
    double *times = calloc(count, sizeof *times);
    int fd = connected(to);
    write_all(fd, "e", 1);
    for (long trip = -WARM; trip < count; trip++) {
        double start = now();
        write_all(fd, message, MESSAGE);
        if (!read_all(fd, message, MESSAGE))
            fail("the echo");
        if (trip >= 0)
            times[trip] = now() - start;
    }
    qsort(times, count, sizeof *times, order);
    return times[count / 2] * 1e6;
}

static const struct addrinfo *closing;
static long each;

static void *connect_all(void *unused) {
    char byte;
    for (long done = 0; done < each; done++) {
        int fd = connected(closing);
        if (read(fd, &byte, 1) != 0)
            fail("the end");
        close(fd);
    }
    return unused;
}

// Some at a time, each until it has seen that the server accepted and closed it.
static double connects(const struct addrinfo *to, long count) {
    pthread_t threads[THREADS];
    double start = now();
    closing = to;
    each = count / THREADS;
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, connect_all, NULL) != 0)
            fail("a thread");
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    return each * THREADS / (now() - start);
}

int main(int count, char **words) {
    if (count == 2 && strcmp(words[1], "serve") == 0)
        return serve();
    if (count != 4)
        return 2;
    struct addrinfo *to = resolved(words[2], strcmp(words[1], "connect") == 0 ? CLOSING : PORT);
    long wanted = atol(words[3]);
    double figure = strcmp(words[1], "stream") == 0 ? stream(to, wanted)
                    : strcmp(words[1], "echo") == 0 ? echo(to, wanted)
                                                    : connects(to, wanted);
    printf("{\"figure\": %.3f}\n", figure);
    return 0;
}
