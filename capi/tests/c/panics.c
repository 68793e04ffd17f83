/* A panic in the library is EIO for the program, which goes on. What panics here is the standard library of Rust, where the
 * clock fails: this program has a clock of its own, which comes before the C library's. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <unisockets.h>

static volatile int broken;

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (broken) {
        errno = EINVAL;
        return -1;
    }
    return (int)syscall(SYS_clock_gettime, clock, now);
}

static void say(const char *what, long value) {
    printf("%s: %ld%s%s\n", what, value, value < 0 ? " " : "", value < 0 ? strerrorname_np(errno) : "");
    errno = 0;
}

static struct sockaddr_in server = {.sin_family = AF_INET};
static socklen_t len = sizeof server;

/* A connection with a limit to how long it may take is one for which the time is asked. */
static void *connects(void *unused) {
    struct timeval limit = {20, 0};
    char word[4] = "";
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    say("a limit", setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit));
    broken = 1;
    say("connect where the clock fails", connect(fd, (struct sockaddr *)&server, sizeof server));
    broken = 0;
    printf("%s\n", unisockets_errmsg());
    say("connect where it works again", connect(fd, (struct sockaddr *)&server, sizeof server) == 0 || errno == EISCONN);
    say("send", send(fd, "ask", 3, 0));
    say("recv", recv(fd, word, 3, MSG_WAITALL));
    printf("%s\n", word);
    close(fd);
    return unused;
}

int main(void) {
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    say("bind", bind(listener, (struct sockaddr *)&server, len));
    say("listen", listen(listener, 8));
    say("getsockname", getsockname(listener, (struct sockaddr *)&server, &len));
    for (int round = 0; round < 3; round++) {
        pthread_t thread;
        char word[4] = "";
        pthread_create(&thread, NULL, connects, NULL);
        int fd = accept(listener, NULL, NULL);
        if (recv(fd, word, 3, MSG_WAITALL) != 3 || send(fd, "yes", 3, 0) != 3)
            perror("the server");
        pthread_join(thread, NULL);
        close(fd);
    }
    close(listener);
    return 0;
}
