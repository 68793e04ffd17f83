/* What happens while something else does: other threads, handlers of signals, children that share memory, the end of the
 * program. It is run with the operating system's sockets and with ours, and has to print the same. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef UNISOCKETS_WITH_ALIAS
#include <unisockets.h>
#endif

static void say(const char *what, long value) {
    printf("%s: %ld%s%s\n", what, value, value < 0 ? " " : "", value < 0 ? strerrorname_np(errno) : "");
    errno = 0;
}

static int udp_at(struct sockaddr_in *address) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof *address;
    if (bind(fd, (struct sockaddr *)address, len) != 0 || getsockname(fd, (struct sockaddr *)address, &len) != 0)
        perror("bind");
    return fd;
}

/* A thread that waits in one of several ways. */
struct waiting {
    pthread_t thread;
    int fd, way, family;
    struct sockaddr_in server;
    long result;
};

static void *wait_on(void *place) {
    struct waiting *waiting = place;
    char data[16];
    struct iovec part = {data, sizeof data};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    struct pollfd wanted = {waiting->fd, POLLIN, 0};
    if (waiting->way == 2)
        poll(&wanted, 1, 10000);
    struct sockaddr_in from = {0};
    socklen_t len = sizeof from;
    if (waiting->way == 1)
        waiting->result = recvmsg(waiting->fd, &message, 0);
    else
        waiting->result = recvfrom(waiting->fd, data, sizeof data, 0, (struct sockaddr *)&from, &len);
    waiting->family = from.sin_family;
    return NULL;
}

static void begin(struct waiting *waiting, int fd, int way) {
    waiting->fd = fd;
    waiting->way = way;
    pthread_create(&waiting->thread, NULL, wait_on, waiting);
    /* Nothing says that a thread waits in the kernel. */
    usleep(100000);
}

static void end(const char *what, struct waiting *waiting) {
    pthread_join(waiting->thread, NULL);
    say(what, waiting->result);
    if (waiting->result > 0 && waiting->way == 0)
        say("from an address of a family", waiting->family);
}

static void threads(void) {
    struct sockaddr_in server, from;
    socklen_t len = sizeof from;
    struct waiting waiting;
    char data[16];
    for (int way = 0; way < 3; way++) {
        int fd = udp_at(&server);
        begin(&waiting, fd, way);
        say("shutdown of a socket that is not connected", shutdown(fd, SHUT_RDWR));
        end("who waited on it", &waiting);
        close(fd);
        /* Who polls hears of what it polled (capi/README.md). */
        if (way == 2)
            continue;
        /* The receiver is there before the socket has an address; a copy of it is not touched by what becomes of that. */
        int peer = udp_at(&server);
        fd = socket(AF_INET, SOCK_DGRAM, 0);
        begin(&waiting, fd, way);
        say("sendto", sendto(fd, "ask", 3, 0, (struct sockaddr *)&server, sizeof server));
        say("recvfrom", recvfrom(peer, data, sizeof data, 0, (struct sockaddr *)&from, &len));
        say("the answer", sendto(peer, "answer", 6, 0, (struct sockaddr *)&from, len));
        end("who waited for it", &waiting);
        close(fd);
        close(peer);
    }
}

static void *connect_to(void *place) {
    struct waiting *waiting = place;
    waiting->result = connect(waiting->fd, (struct sockaddr *)&waiting->server, sizeof waiting->server);
    return NULL;
}

/* A thread has its connection at the latest when its other end is accepted. */
static void connections(void) {
    struct waiting waiting = {0};
    socklen_t len = sizeof waiting.server;
    waiting.server = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int listener = socket(AF_INET, SOCK_STREAM, 0), ended = 0;
    say("bind", bind(listener, (struct sockaddr *)&waiting.server, sizeof waiting.server));
    say("listen", listen(listener, 8));
    say("getsockname", getsockname(listener, (struct sockaddr *)&waiting.server, &len));
    for (int round = 0; round < 100; round++) {
        char data[16];
        struct iovec part = {data, sizeof data};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
        waiting.fd = socket(AF_INET, SOCK_STREAM, 0);
        pthread_create(&waiting.thread, NULL, connect_to, &waiting);
        close(accept(listener, NULL, NULL));
        ssize_t received = round % 2 ? recvmsg(waiting.fd, &message, 0) : recv(waiting.fd, data, sizeof data, 0);
        if (received == 0)
            ended++;
        else
            say("recv of a connection that another thread makes", received);
        pthread_join(waiting.thread, NULL);
        ended += waiting.result == 0;
        close(waiting.fd);
    }
    say("connections made, and ended", ended);
    close(listener);
}

static void closing(int number) {
    (void)number;
    int fd = dup(0);
    if (fd >= 0)
        close(fd);
}

/* close(2) may be called in a handler, whatever it interrupts. */
static void signals(void) {
    struct itimerval often = {{0, 200}, {0, 200}}, never = {{0, 0}, {0, 0}};
    struct sigaction action = {.sa_handler = closing, .sa_flags = SA_RESTART};
    sigaction(SIGVTALRM, &action, NULL);
    int epoll = epoll_create1(EPOLL_CLOEXEC), fd = socket(AF_INET, SOCK_STREAM, 0);
    struct epoll_event event = {.events = EPOLLIN};
    setitimer(ITIMER_VIRTUAL, &often, NULL);
    int failed = 0;
    for (int i = 0; i < 100000; i++)
        failed |= epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) | epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL);
    setitimer(ITIMER_VIRTUAL, &never, NULL);
    say("epoll_ctl, interrupted often", failed);
    close(fd);
    close(epoll);
}

/* What a child closes that shares this program's memory is its own. */
static void children(void) {
    struct sockaddr_in server, from;
    socklen_t len = sizeof from;
    struct epoll_event event = {.events = EPOLLIN};
    char data[16];
    int epoll = epoll_create1(EPOLL_CLOEXEC), peer = udp_at(&server), fd = socket(AF_INET, SOCK_DGRAM, 0);
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    pid_t child = vfork();
    if (child == 0) {
        close(epoll);
        close(fd);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    say("sendto", sendto(fd, "ask", 3, 0, (struct sockaddr *)&server, sizeof server));
    say("recvfrom", recvfrom(peer, data, sizeof data, 0, (struct sockaddr *)&from, &len));
    say("the answer", sendto(peer, "answer", 6, 0, (struct sockaddr *)&from, len));
    say("epoll_wait after a vfork", epoll_wait(epoll, &event, 1, 10000));
    close(fd);
    close(peer);
    close(epoll);
}

/* The C library looks names up by its own calls, and the list is freed by the program's. */
static void foreign_lists(void) {
    struct gaicb asked = {.ar_name = "127.0.0.1", .ar_service = "80"}, *list[1] = {&asked};
    say("getaddrinfo_a", getaddrinfo_a(GAI_WAIT, list, 1, NULL));
    freeaddrinfo(asked.ar_result);
    struct addrinfo hints = {.ai_flags = AI_CANONNAME, .ai_socktype = SOCK_STREAM}, *found = NULL;
    say("getaddrinfo", getaddrinfo("127.0.0.1", "80", &hints, &found));
    puts(found->ai_canonname);
    freeaddrinfo(found);
}

static void odd_options(void) {
    struct sockaddr_in any = {.sin_family = AF_INET};
    struct linger negative = {1, -1};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    say("a negative linger", setsockopt(fd, SOL_SOCKET, SO_LINGER, &negative, sizeof negative));
    say("and a bind", bind(fd, (struct sockaddr *)&any, sizeof any));
    negative.l_onoff = 0;
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &negative, sizeof negative);
    close(fd);
}

static int late = -1;

static void refused(const char *what) {
    int value = 1;
    say(what, setsockopt(late, IPPROTO_TCP, 9999, &value, sizeof value));
}

static void at_exit(void) {
    refused("a call that fails at exit");
    say("and one that does not", close(late));
    fflush(stdout);
}

static void in_destructor(void *unused) {
    (void)unused;
    refused("a call that fails in a thread's destructor");
}

static pthread_key_t key;

static void *with_destructor(void *unused) {
    pthread_setspecific(key, "something");
    refused("a call that fails in a thread");
    return unused;
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    alarm(60);
    threads();
    connections();
    signals();
    children();
    foreign_lists();
    odd_options();
    struct sockaddr_in any = {.sin_family = AF_INET};
    late = socket(AF_INET, SOCK_STREAM, 0);
    bind(late, (struct sockaddr *)&any, sizeof any);
    pthread_t thread;
    pthread_key_create(&key, in_destructor);
    pthread_create(&thread, NULL, with_destructor, NULL);
    pthread_join(thread, NULL);
    refused("a call that fails");
    atexit(at_exit);
    return 0;
}
