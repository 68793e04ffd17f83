/* unisockets: Berkeley sockets on one virtual IP network.
 *
 * Every call is that of the manual page with the same name without the prefix, and works on virtual sockets and on
 * those of the operating system. A virtual socket is a kernel descriptor: read, write, close, poll, epoll, select,
 * sendfile, dup, fork and TLS libraries work on it as they are. capi/README.md has the table of options, and what
 * differs from Linux.
 *
 * All calls are thread-safe. They set errno; unisockets_errmsg() has a sentence about the last failure.
 *
 * Define UNISOCKETS_WITH_ALIAS before including this header, and the plain names (socket, bind, ...) mean these calls.
 * Define UNISOCKETS_WITH_INVERSE_ALIAS, and these names mean the operating system's calls.
 *
 * Made by cbindgen from capi/src; do not edit. SPDX-License-Identifier: MIT OR Apache-2.0 */

#ifndef UNISOCKETS_H
#define UNISOCKETS_H


#include <netdb.h>
#include <poll.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>

/* recvmmsg and sendmmsg need _GNU_SOURCE for this. */
struct mmsghdr;

#define UNISOCKETS_VERSION "0.1.0"


// The settings of unisockets_up. A null pointer takes what the environment says: UNISOCKETS_SIGNAL,
// UNISOCKETS_NETWORK, UNISOCKETS_SECRET, UNISOCKETS_NAME, UNISOCKETS_NODE. Set it to zeros first.
typedef struct unisockets_config {
    // The signaling server: ws://HOST:PORT or wss://HOST.
    const char *signal;
    // The network's name.
    const char *network;
    // The network's secret.
    const char *secret;
    // This member's name, which keeps its addresses.
    const char *name;
    // The control socket of a node that runs already; the others are not looked at then.
    const char *node;
} unisockets_config;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Joins a network: finds the node of the settings, or starts one in a process of its own, which outlives fork, exec and
// the end of this process until its last descriptor has drained. A null pointer means the environment alone. Without
// this call the first call that needs a network does the same, if the environment names one.
//
// Errors: -1 and ENETDOWN; EISCONN, the program is on a network with other settings; EINVAL, a string is not UTF-8, or longer
// than 4,096 bytes. unisockets_errmsg() says why.
int unisockets_up(const struct unisockets_config *config);

// Leaves the network: a node that this program has started ends once every socket has drained, any other goes on for the
// programs that share it.
//
// Errors: -1 and ENETDOWN, it was not up.
int unisockets_down(void);

// Returns the node's status as a JSON object: its addresses, peers, paths, sockets and counters. It is valid until the
// thread's next call.
//
// Errors: null and ENETDOWN.
const char *unisockets_status(void);

// Returns the library's version; UNISOCKETS_VERSION is that of the header.
const char *unisockets_version(void);

// Returns a sentence about the thread's last failure, for people. It is valid until the thread's next call.
const char *unisockets_errmsg(void);

// Writes every packet of the node from now on to a file in the pcapng format; null ends that.
//
// Errors: -1 and those of creating the file.
int unisockets_capture(const char *path);

// Makes a socket (socket(2)).
//
// It is the operating system's until it is bound or connected to an address of the network, or sends there: then a
// virtual descriptor takes its place, under the same number and with the options set on it. What was made of it by dup(2)
// before stays the operating system's.
//
// Errors: those of socket(2).
int unisockets_socket(int domain,
                      int type_,
                      int protocol);

// Binds a socket (bind(2)). An address of the network, and any (INADDR_ANY, in6addr_any), make it virtual; port 0 takes a
// free one.
//
// Errors: EADDRINUSE; EADDRNOTAVAIL, the address is another member's; EINVAL, it is bound already; ENETDOWN, there is no
// node, and unisockets_errmsg() says why; and those of bind(2).
int unisockets_bind(int fd,
                    const struct sockaddr *address,
                    socklen_t len);

// Lets a socket listen (listen(2)). At most `backlog` connections wait for accept in the descriptor, and as many in the
// node; 4096 is the most.
//
// Errors: EINVAL, it is connected; EOPNOTSUPP, it is a datagram socket.
int unisockets_listen(int fd, int backlog);

// Takes the next connection (accept(2)). SO_RCVTIMEO bounds the waiting.
//
// Errors: EAGAIN, there is none and the descriptor does not wait; EINVAL, the socket does not listen, or was shut;
// EINTR.
int unisockets_accept(int fd, struct sockaddr *address, socklen_t *len);

// Takes the next connection, with SOCK_NONBLOCK and SOCK_CLOEXEC (accept4(2)).
//
// Errors: those of unisockets_accept; EINVAL, other flags.
int unisockets_accept4(int fd, struct sockaddr *address, socklen_t *len, int flags);

// Connects a socket (connect(2)). A descriptor that does not wait gives EINPROGRESS; it becomes writable when the
// connection is there, and SO_ERROR tells how it went. SO_SNDTIMEO bounds the waiting, the node about 127 s.
//
// Errors: ECONNREFUSED, nobody listens; ETIMEDOUT; EHOSTUNREACH, no such member, or no way to it; ENETUNREACH, a virtual
// socket and an address outside the network; EINPROGRESS, EALREADY, EISCONN, EINTR; ENETDOWN, there is no node.
int unisockets_connect(int fd,
                       const struct sockaddr *address,
                       socklen_t len);

// Shuts one direction, or both (shutdown(2)).
//
// Errors: ENOTCONN; EINVAL, another value of `how`.
int unisockets_shutdown(int fd, int how);

// Closes a descriptor (close(2)). Plain close does as well; this one tells the node at once of a datagram socket that is
// closed, which it finds out within about a second otherwise.
//
// Errors: those of close(2).
int unisockets_close(int fd);

// Returns the socket's own address (getsockname(2)).
//
// Errors: EFAULT, EBADF.
int unisockets_getsockname(int fd, struct sockaddr *address, socklen_t *len);

// Returns the other end's address (getpeername(2)).
//
// Errors: ENOTCONN, EFAULT, EBADF.
int unisockets_getpeername(int fd, struct sockaddr *address, socklen_t *len);

// Sends bytes of a connection, or a datagram to the connected peer (send(2)). write(2) does the same.
//
// Errors: EAGAIN; EPIPE with SIGPIPE unless MSG_NOSIGNAL; ECONNRESET; EDESTADDRREQ; EMSGSIZE, more than 65,507 bytes in a
// datagram; EOPNOTSUPP, MSG_OOB.
ptrdiff_t unisockets_send(int fd,
                          const void *data,
                          size_t len,
                          int flags);

// Sends a datagram to an address (sendto(2)). A socket that was not bound gets a free port.
//
// Errors: those of unisockets_send; ENETUNREACH, EAFNOSUPPORT.
ptrdiff_t unisockets_sendto(int fd,
                            const void *data,
                            size_t len,
                            int flags,
                            const struct sockaddr *to,
                            socklen_t to_len);

// Sends what lies in several places (sendmsg(2)). Ancillary data for datagrams is ignored.
//
// Errors: those of unisockets_sendto.
ptrdiff_t unisockets_sendmsg(int fd, const struct msghdr *message, int flags);

// Sends several messages (sendmmsg(2)); returns how many.
//
// Errors: those of unisockets_sendmsg, if not even the first was sent.
int unisockets_sendmmsg(int fd, struct mmsghdr *messages, uint32_t count, int flags);

// Receives bytes of a connection, or a datagram (recv(2)); read(2) does the same. 0 is the end of a stream. MSG_PEEK,
// MSG_WAITALL, MSG_DONTWAIT and MSG_TRUNC are honoured.
//
// Errors: EAGAIN; ECONNRESET; ETIMEDOUT; ECONNREFUSED, the peer of a connected datagram socket has no socket there;
// EINVAL, MSG_OOB.
ptrdiff_t unisockets_recv(int fd, void *data, size_t len, int flags);

// Receives a datagram and the address of its sender (recvfrom(2)).
//
// Errors: those of unisockets_recv.
ptrdiff_t unisockets_recvfrom(int fd, void *data, size_t len, int flags, struct sockaddr *from, socklen_t *from_len);

// Receives into several places (recvmsg(2)), with IP_PKTINFO or IPV6_PKTINFO where the socket wants it.
//
// Errors: those of unisockets_recv.
ptrdiff_t unisockets_recvmsg(int fd, struct msghdr *message, int flags);

// Receives several messages (recvmmsg(2)); returns how many. The time is looked at after each message, as on Linux.
//
// Errors: those of unisockets_recvmsg, if not even the first was received.
int unisockets_recvmmsg(int fd, struct mmsghdr *messages, uint32_t count, int flags, struct timespec *timeout);

// Reads an option (getsockopt(2)). capi/README.md has the table.
//
// Errors: ENOPROTOOPT, EFAULT, EBADF.
int unisockets_getsockopt(int fd, int level, int option, void *value, socklen_t *len);

// Sets an option (setsockopt(2)). capi/README.md has the table.
//
// Errors: ENOPROTOOPT; EINVAL, the value; EBADF.
int unisockets_setsockopt(int fd, int level, int option, const void *value, socklen_t len);

// Waits for descriptors (poll(2)): the kernel's own call.
//
// Errors: those of poll(2).
int unisockets_poll(struct pollfd *wanted, nfds_t count, int timeout_ms);

// Waits for descriptors (select(2)): the kernel's own call.
//
// Errors: those of select(2).
int unisockets_select(int count, fd_set *read, fd_set *write, fd_set *except, struct timeval *timeout);

// Says what an epoll watches (epoll_ctl(2)). It is needed only for sockets that are watched before they are bound or
// connected: they stay watched when they become virtual.
//
// Errors: those of epoll_ctl(2).
int unisockets_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event);

// Finds addresses (getaddrinfo(3)): of members for one label (`alpha`) and for names that end in `.internal`, of
// everything else from the C library. Only unisockets_freeaddrinfo may free the list.
//
// Errors: EAI_NONAME and the others of getaddrinfo(3).
int unisockets_getaddrinfo(const char *node,
                           const char *service,
                           const struct addrinfo *hints,
                           struct addrinfo **result);

// Frees a list of unisockets_getaddrinfo.
void unisockets_freeaddrinfo(struct addrinfo *list);

// Finds the name of an address (getnameinfo(3)): a member's is its name on the network.
//
// Errors: EAI_NONAME, EAI_OVERFLOW and the others of getnameinfo(3).
int unisockets_getnameinfo(const struct sockaddr *address,
                           socklen_t len,
                           char *host,
                           socklen_t host_len,
                           char *service,
                           socklen_t service_len,
                           int flags);

// Finds the IPv4 addresses of a name (gethostbyname(3)); the result stays until the thread's next call.
//
// Errors: null; h_errno says why.
struct hostent *unisockets_gethostbyname(const char *name);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* UNISOCKETS_H */

#include "unisockets_alias.h"
