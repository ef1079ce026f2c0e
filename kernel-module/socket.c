// SPDX-License-Identifier: GPL-2.0-only
/*
 * The life of a TLS socket.
 *
 * A TLS socket owns an inner TCP socket that is made in the program's context: namespace,
 * credentials, cgroup and security labels are the program's.  bind, connect and listen act on it.
 * The daemon fetches a descriptor of it, does the handshake, and then reports where the plaintext
 * goes.
 */
#include <linux/module.h>
#include <linux/slab.h>
#include <net/af_unix.h>
#include <net/inet_connection_sock.h>
#include <net/protocol.h>
#include <net/tcp.h>

#include "ssa.h"

DEFINE_XARRAY(ssa_sockets);
static atomic64_t ssa_socket_number = ATOMIC64_INIT(0);
static struct lock_class_key ssa_slock_key, ssa_lock_key, ssa_wait_key;

/* The socket with a number, held; NULL where it is gone. */
struct sock *ssa_get(u64 id)
{
	struct sock *sk;

	xa_lock(&ssa_sockets);
	sk = xa_load(&ssa_sockets, id);
	if (sk)
		sock_hold(sk);
	xa_unlock(&ssa_sockets);
	return sk;
}

/* From now on ssa_get finds it. */
int ssa_publish(struct sock *sk)
{
	return xa_err(xa_store(&ssa_sockets, ssa_sk(sk)->id, sk, GFP_KERNEL_ACCOUNT));
}

void ssa_fields(struct sock *sk)
{
	struct ssa_sock *s = ssa_sk(sk);

	memset((u8 *)s + sizeof(struct inet_sock), 0, sizeof(*s) - sizeof(struct inet_sock));
	s->id = atomic64_inc_return(&ssa_socket_number);
	INIT_LIST_HEAD(&s->queue);
	INIT_LIST_HEAD(&s->link);
	INIT_LIST_HEAD(&s->kept);
	init_waitqueue_head(&s->receivers);
	/* Inner sockets are of the ordinary classes, and are locked inside of ours. */
	sock_prot_inuse_add(sock_net(sk), sk->sk_prot, 1);
	sock_lock_init_class_and_name(sk, "slock-SSA", &ssa_slock_key, "sk_lock-SSA",
				      &ssa_lock_key);
}

void ssa_graft(struct ssa_sock *s, struct socket *sock)
{
	s->wq = &sock->wq;
	lockdep_set_class(&sock->wq.wait.lock, &ssa_wait_key);
	ssa_want_socket_options(sock);
}

/* The sizes that a program has chosen.  Under lock_sock of the inner one. */
void ssa_carry_buffers(struct sock *sk, struct sock *inner)
{
	if (sk->sk_userlocks & SOCK_SNDBUF_LOCK) {
		inner->sk_sndbuf = sk->sk_sndbuf;
		inner->sk_userlocks |= SOCK_SNDBUF_LOCK;
	}
	if (sk->sk_userlocks & SOCK_RCVBUF_LOCK) {
		inner->sk_rcvbuf = sk->sk_rcvbuf;
		inner->sk_userlocks |= SOCK_RCVBUF_LOCK;
	}
}

/*
 * SOL_SOCKET options live in the outer sock, since the core sets them there.  Copy them to an inner
 * one before it is used, and at the end.
 */
void ssa_carry_to(struct sock *sk, struct sock *inner)
{
	bool keepalive = sock_flag(sk, SOCK_KEEPOPEN);

	lock_sock(inner);
	inner->sk_reuse = sk->sk_reuse;
	inner->sk_reuseport = sk->sk_reuseport;
	inner->sk_bound_dev_if = sk->sk_bound_dev_if;
	inner->sk_mark = READ_ONCE(sk->sk_mark);
	inner->sk_priority = READ_ONCE(sk->sk_priority);
	inner->sk_lingertime = sk->sk_lingertime;
	sock_valbool_flag(inner, SOCK_LINGER, sock_flag(sk, SOCK_LINGER));
	sock_valbool_flag(inner, SOCK_LOCALROUTE, sock_flag(sk, SOCK_LOCALROUTE));
	ssa_carry_buffers(sk, inner);
	if (inner->sk_prot->keepalive && keepalive != sock_flag(inner, SOCK_KEEPOPEN))
		inner->sk_prot->keepalive(inner, keepalive);
	sock_valbool_flag(inner, SOCK_KEEPOPEN, keepalive);
	release_sock(inner);
}

/* What getsockopt shows for a socket that nobody has changed: TCP's own values. */
void ssa_inherit(struct sock *sk, struct sock *inner)
{
	sk->sk_sndbuf = inner->sk_sndbuf;
	sk->sk_rcvbuf = inner->sk_rcvbuf;
	sk->sk_reuse = inner->sk_reuse;
	sk->sk_reuseport = inner->sk_reuseport;
	sk->sk_bound_dev_if = inner->sk_bound_dev_if;
	sk->sk_mark = READ_ONCE(inner->sk_mark);
	sk->sk_priority = READ_ONCE(inner->sk_priority);
	sk->sk_lingertime = inner->sk_lingertime;
	sk->sk_rcvtimeo = inner->sk_rcvtimeo;
	sk->sk_sndtimeo = inner->sk_sndtimeo;
	sk->sk_rcvlowat = inner->sk_rcvlowat;
	sock_valbool_flag(sk, SOCK_LINGER, sock_flag(inner, SOCK_LINGER));
	sock_valbool_flag(sk, SOCK_KEEPOPEN, sock_flag(inner, SOCK_KEEPOPEN));
	sk->sk_userlocks |= inner->sk_userlocks & (SOCK_SNDBUF_LOCK | SOCK_RCVBUF_LOCK);
}

/* The last event of a socket is allocated before its first: the close must not be lost. */
int ssa_prepare_close(struct ssa_sock *s)
{
	struct ssa_event *event = ssa_event_new((struct sock *)s, SSA_C_CLOSE_NOTIFY, 0);

	if (IS_ERR(event))
		return PTR_ERR(event);
	s->closing = event;
	return 0;
}

static int ssa_announce(struct sock *sk)
{
	struct ssa_sock *s = ssa_sk(sk);
	u16 family = sk->sk_family;
	struct ssa_event *event;
	int error;

	error = ssa_prepare_close(s);
	if (error)
		return error;
	event = ssa_event_new(sk, SSA_C_SOCKET_NOTIFY,
			      SSA_CALLER_SIZE + nla_total_size(sizeof(family)));
	if (IS_ERR(event))
		return PTR_ERR(event);
	ssa_event_add(event, SSA_A_FAMILY, &family, sizeof(family));
	error = ssa_event_add_caller(event);
	if (!error)
		error = ssa_event_post(event);
	ssa_event_put(event);
	return error;
}

/* Called by inet_create; on an error it calls ssa_destroy. */
static int ssa_init_sock(struct sock *sk)
{
	struct ssa_sock *s = ssa_sk(sk);
	struct socket *inner;
	struct file *file;
	int error;

	ssa_fields(sk);
	s->session = ssa_worker_take();
	if (!s->session)
		return -ENETDOWN;
	error = ssa_user_get(s);
	if (error)
		return error;
	ssa_graft(s, sk->sk_socket);
	/*
	 * Not a kernel socket: it holds the namespace, and security modules and cgroups see the
	 * caller.
	 */
	error = __sock_create(sock_net(sk), sk->sk_family, SOCK_STREAM, IPPROTO_TCP, &inner, 0);
	if (error)
		return error;
	file = sock_alloc_file(inner, 0, NULL);	/* releases inner on error */
	if (IS_ERR(file))
		return PTR_ERR(file);
	s->inner_file = file;
	s->inner = inner;
	tcp_sock_set_nodelay(inner->sk);
	ssa_inherit(sk, inner->sk);
	error = ssa_publish(sk);
	if (error)
		return error;
	return ssa_announce(sk);
}

static void ssa_drop_candidates(struct ssa_sock *s)
{
	while (s->candidate_count)
		fput(s->candidates[--s->candidate_count]);
	if (s->cred) {
		put_cred(s->cred);
		s->cred = NULL;
	}
}

static void ssa_drop_file(struct file **file)
{
	if (*file)
		fput(*file);
	*file = NULL;
}

/* The last step of every socket, and the error path of inet_create. */
static void ssa_destroy(struct sock *sk)
{
	struct ssa_sock *s = ssa_sk(sk);

	xa_erase(&ssa_sockets, s->id);
	sock_prot_inuse_add(sock_net(sk), sk->sk_prot, -1);
	lock_sock(sk);		/* somebody may have found it a moment ago */
	ssa_set_state(s, SSA_CLOSED);
	if (s->relaying) {
		remove_wait_queue(&s->data->wq.wait, &s->wake);
		s->relaying = false;
	}
	ssa_drop_candidates(s);
	ssa_keep_none(s);
	ssa_complain(s, NULL);
	put_cred(s->binder);
	s->binder = NULL;
	ssa_drop_file(&s->data_file);
	ssa_drop_file(&s->spare_file);
	ssa_drop_file(&s->inner_file);
	release_sock(sk);
	ssa_event_put(s->closing);
	s->closing = NULL;
	ssa_user_put(s);
	ssa_worker_drop(s->session);
	s->session = 0;
}

static void ssa_unhash(struct sock *sk)
{
}

/* The one SOL_SOCKET option that the core tells a protocol about. */
static void ssa_keepalive(struct sock *sk, int on)
{
	struct socket *inner = ssa_sk(sk)->inner;

	if (!inner)
		return;
	lock_sock(inner->sk);
	inner->sk->sk_prot->keepalive(inner->sk, on);
	sock_valbool_flag(inner->sk, SOCK_KEEPOPEN, on);
	release_sock(inner->sk);
}

static void ssa_close(struct sock *sk, long timeout)
{
	sk_common_release(sk);
}

/*
 * Room to send is told only to whoever has missed it, as TCP does: edge-triggered epoll tells the
 * program of each wakeup.
 */
static bool ssa_is_idle(struct ssa_sock *s, void *key)
{
	__poll_t events = key_to_poll(key);

	if (!events || events & ~(EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND))
		return false;
	return !test_and_clear_bit(SSA_NOSPACE, &s->flags);
}

/*
 * Let SO_ERROR tell that a connection is broken.  Under the lock of the queue of the data socket,
 * or at its beginning.
 */
static void ssa_note_end(struct ssa_sock *s)
{
	struct sock *sk = (struct sock *)s, *data = s->data->sk;
	int error = READ_ONCE(data->sk_err);

	/* An end that nobody vouches for; kTLS knows only when its last record has been read. */
	if (!error && !s->ktls && (READ_ONCE(data->sk_shutdown) & RCV_SHUTDOWN) &&
	    !READ_ONCE(s->eof) && !READ_ONCE(s->shut))
		error = ECONNRESET;
	if (s->ktls && (error == EBADMSG || error == EMSGSIZE || error == EINVAL))
		error = ECONNRESET;	/* what kTLS says of records that are none */
	if (error && !test_and_set_bit(SSA_BROKEN, &s->flags))
		WRITE_ONCE(sk->sk_err, error);
}

/* An entry on the queue of the data socket: whoever it wakes, the program's queue is woken too. */
static int ssa_wake(wait_queue_entry_t *entry, unsigned int mode, int sync, void *key)
{
	struct ssa_sock *s = container_of(entry, struct ssa_sock, wake);
	struct socket_wq *wq = READ_ONCE(s->wq);

	if (!wq || ssa_is_idle(s, key))
		return 0;
	ssa_note_end(s);
	if (wq_has_sleeper(&wq->wait)) {
		if (key)
			wake_up_interruptible_poll(&wq->wait, key_to_poll(key));
		else
			wake_up_interruptible_all(&wq->wait);
	}
	if (READ_ONCE(wq->fasync_list))
		kill_fasync(&wq->fasync_list, SIGIO,
			    key_to_poll(key) & EPOLLIN ? POLL_IN : POLL_OUT);
	return 0;
}

/*
 * A send found too little room: there may be some again, and its wakeup may have come before we
 * asked for it.
 */
void ssa_want_space(struct ssa_sock *s)
{
	struct socket_wq *wq = READ_ONCE(s->wq);

	set_bit(SSA_NOSPACE, &s->flags);
	smp_mb__after_atomic();		/* the mark, then the look; ssa_wake the other way */
	if (wq && READ_ONCE(s->data->ops)->poll(NULL, s->data, NULL) & EPOLLOUT)
		wake_up_interruptible_poll(&wq->wait, EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND);
}

/* From now on what happens at the data socket wakes the program.  Under lock_sock. */
void ssa_relay_start(struct ssa_sock *s)
{
	init_waitqueue_func_entry(&s->wake, ssa_wake);
	add_wait_queue(&s->data->wq.wait, &s->wake);
	s->relaying = true;
	ssa_note_end(s);
}

/* An attempt has ended.  Under lock_sock. */
void ssa_finish(struct sock *sk, int error)
{
	struct ssa_sock *s = ssa_sk(sk);

	ssa_drop_candidates(s);
	ssa_complain(s, NULL);	/* of a call that was refused meanwhile */
	if (error) {
		if (s->spare_file) {
			fput(s->inner_file);
			s->inner_file = s->spare_file;
			s->inner = sock_from_file(s->inner_file);
			s->spare_file = NULL;
		} else {
			/* The daemon's close is not the last one, so this tells the peer. */
			kernel_sock_shutdown(s->inner, SHUT_RDWR);
		}
		s->reset = true;
		sk->sk_state = TCP_CLOSE;
		WRITE_ONCE(sk->sk_err, error);
		ssa_set_state(s, SSA_NEW);
		sk->sk_state_change(sk);
		sk_error_report(sk);
		return;
	}
	sk->sk_state = TCP_ESTABLISHED;
	if (sk->sk_socket)
		sk->sk_socket->state = SS_CONNECTED;
	ssa_set_state(s, SSA_ESTABLISHED);
	sk->sk_state_change(sk);
	sk_wake_async(sk, SOCK_WAKE_IO, POLL_OUT);
}

/* Of a worker, the first socket with a number of at least that, held. */
static struct sock *ssa_find_of(unsigned int session, unsigned long *id)
{
	struct sock *sk;

	xa_lock(&ssa_sockets);
	sk = xa_find(&ssa_sockets, id, ULONG_MAX, XA_PRESENT);
	while (sk && ssa_sk(sk)->session != session)
		sk = xa_find_after(&ssa_sockets, id, ULONG_MAX, XA_PRESENT);
	if (sk)
		sock_hold(sk);
	xa_unlock(&ssa_sockets);
	return sk;
}

/*
 * A worker is gone: attempts and listeners end.  Connections over kTLS go on; those of the relay
 * end by themselves.
 */
void ssa_daemon_gone(unsigned int session)
{
	unsigned long id = 0;
	struct sock *sk;

	for (sk = ssa_find_of(session, &id); sk; id++, sk = ssa_find_of(session, &id)) {
		lock_sock(sk);
		if (ssa_sk(sk)->state == SSA_CONNECTING) {
			ssa_finish(sk, ENETDOWN);
		} else if (ssa_sk(sk)->state == SSA_LISTEN) {
			ssa_set_state(ssa_sk(sk), SSA_DEAD);
			/* Whoever connects would wait for ever. */
			kernel_sock_shutdown(ssa_sk(sk)->inner, SHUT_RDWR);
			WRITE_ONCE(sk->sk_err, ENETDOWN);
			sk->sk_state_change(sk);
			sk_error_report(sk);
		}
		release_sock(sk);
		sock_put(sk);
	}
}

/* The daemon may hold a descriptor of the inner socket for longer: give the port back now. */
static void ssa_stop_inner(struct socket *inner)
{
	lock_sock(inner->sk);
	inner->sk->sk_userlocks &= ~SOCK_BINDPORT_LOCK;
	release_sock(inner->sk);
	kernel_sock_shutdown(inner, SHUT_RDWR);
}

/* The program wants a reset: the daemon sees one at its end of the pair, instead of a clean end. */
static void ssa_reset_daemon(struct ssa_sock *s)
{
	struct sock *peer = unix_peer_get(s->data->sk);

	if (!peer)
		return;
	WRITE_ONCE(peer->sk_err, ECONNRESET);
	sock_put(peer);
}

/* Whether all that was sent has arrived, and the end too. */
static bool ssa_is_sent(struct ssa_sock *s)
{
	int state = READ_ONCE(s->inner->sk->sk_state);

	return (1 << state) & (TCPF_FIN_WAIT2 | TCPF_TIME_WAIT | TCPF_CLOSE);
}

/*
 * SO_LINGER: wait until the daemon has sent what the program has written, and the peer's TCP has
 * it, but not for longer.
 */
static void ssa_linger(struct ssa_sock *s, struct sock *sk)
{
	long left = sk->sk_lingertime, part;

	if (!sock_flag(sk, SOCK_LINGER) || !sk->sk_lingertime || (current->flags & PF_EXITING))
		return;
	READ_ONCE(s->data->ops)->shutdown(s->data, SHUT_WR);
	/* The end of the worker wakes nobody here. */
	for (; left > 0 && !ssa_is_sent(s) && ssa_worker_alive(s->session); left -= HZ) {
		part = min_t(long, left, HZ);
		if (wait_event_interruptible_timeout(*sk_sleep(s->inner->sk), ssa_is_sent(s),
						     part) < 0)
			return;
	}
}

static int ssa_release(struct socket *sock)
{
	struct sock *sk = sock->sk;
	struct ssa_sock *s;
	enum ssa_state old;
	LIST_HEAD(queue);

	if (!sk)
		return 0;
	s = ssa_sk(sk);
	lock_sock(sk);
	old = s->state;
	ssa_set_state(s, SSA_CLOSED);
	sk->sk_state = TCP_CLOSE;	/* inet_sock_destruct expects it */
	list_splice_init(&s->queue, &queue);
	release_sock(sk);
	xa_erase(&ssa_sockets, s->id);
	ssa_children_drop(&queue);
	ssa_carry_to(sk, s->inner->sk);
	if (old == SSA_LISTEN || old == SSA_CONNECTING || old == SSA_DEAD)
		ssa_stop_inner(s->inner);
	if (old == SSA_ESTABLISHED) {
		bool reset = sock_flag(sk, SOCK_LINGER) && !sk->sk_lingertime;

		if (s->ktls && !reset)
			ssa_ktls_close(s);
		else if (!s->ktls && reset)
			ssa_reset_daemon(s);
	}
	ssa_event_post(s->closing);
	if (old == SSA_ESTABLISHED && !s->ktls)
		ssa_linger(s, sk);
	sock_orphan(sk);
	sock->sk = NULL;
	sk_common_release(sk);
	return 0;
}

/* The address of a TCP socket as the daemon gets it; returns its size, or an error. */
int ssa_address(struct socket *sock, bool peer, struct sockaddr_storage *address)
{
	memset(address, 0, sizeof(*address));
	/* 2: the peer's, even if the connection is not complete. */
	return READ_ONCE(sock->ops)->getname(sock, (struct sockaddr *)address, peer ? 2 : 0);
}

static int ssa_bind(struct socket *sock, struct sockaddr *address, int size)
{
	struct sock *sk = sock->sk;
	struct ssa_sock *s = ssa_sk(sk);
	int error = -EINVAL;

	lock_sock(sk);
	if (s->state == SSA_NEW) {
		ssa_carry_to(sk, s->inner->sk);
		error = READ_ONCE(s->inner->ops)->bind(s->inner, address, size);
	}
	if (!error) {
		/*
		 * Whoever may bind to this address now may connect from it later, to each address
		 * of a name.
		 */
		put_cred(s->binder);
		s->binder = get_current_cred();
	} else {
		ssa_complain(s, "bind: %pe", ERR_PTR(error));
	}
	release_sock(sk);
	return error;
}

/* Whether the daemon that there is serves a socket; an errno if not. */
int ssa_served(const struct ssa_sock *s)
{
	if (s->state == SSA_DEAD || !ssa_worker_alive(s->session))
		return -ENETDOWN;
	return READ_ONCE(s->refused);
}

/* The same, and a word for TLS_ERROR. */
int ssa_refused(struct ssa_sock *s)
{
	int error = ssa_served(s);

	if (error)
		ssa_complain(s, "the daemon does not serve this socket: %pe", ERR_PTR(error));
	return error;
}

/*
 * Wait for the end of an attempt that runs.  Under lock_sock, which is given up meanwhile.
 */
int ssa_await(struct socket *sock, bool nonblock)
{
	struct sock *sk = sock->sk;
	struct ssa_sock *s = ssa_sk(sk);
	long timeout = sock_sndtimeo(sk, nonblock);
	long left;

	if (!timeout)
		return -EINPROGRESS;
	release_sock(sk);
	left = wait_event_interruptible_timeout(*sk_sleep(sk), ssa_state(s) != SSA_CONNECTING,
						timeout);
	lock_sock(sk);
	if (s->state == SSA_CONNECTING)
		return left < 0 ? sock_intr_errno(timeout) : -EINPROGRESS;
	if (s->state == SSA_ESTABLISHED)
		return 0;
	sock->state = SS_UNCONNECTED;
	return sock_error(sk) ?: -ECONNABORTED;
}

/* Announce an attempt.  Under lock_sock. */
static int ssa_announce_connect(struct sock *sk, const void *address, int size, bool named,
				bool nonblock)
{
	struct ssa_sock *s = ssa_sk(sk);
	struct sockaddr_storage local;
	struct ssa_event *event;
	u8 blocking = !nonblock;
	int error, got;

	event = ssa_event_new(sk, SSA_C_CONNECT_NOTIFY, SSA_ADDRESS_SIZE + 16);
	if (IS_ERR(event))
		return PTR_ERR(event);
	ssa_event_add(event, SSA_A_BLOCKING, &blocking, sizeof(blocking));
	ssa_event_add(event, SSA_A_SOCKADDR_REMOTE, address, size);
	if (!named) {
		got = ssa_address(s->inner, false, &local);
		if (got > 0)
			ssa_event_add(event, SSA_A_SOCKADDR_EXTERNAL, &local, got);
	}
	error = ssa_event_post(event);
	ssa_event_put(event);
	return error;
}

static bool ssa_is_host(const struct sockaddr_host *host, int size)
{
	int room =
		min_t(int, size, sizeof(*host)) - (int)offsetof(struct sockaddr_host, sh_addr.name);

	return room > 0 && host->sh_addr.name[0] && memchr(host->sh_addr.name, 0, room);
}

/*
 * Tell why TCP cannot connect.  Of the address only what the program has given is its own: the rest
 * is the kernel's stack.
 */
static void ssa_complain_of_connect(struct ssa_sock *s, const struct sockaddr *address, int size,
				    int error)
{
	struct sockaddr_storage whole = {};

	memcpy(&whole, address, min_t(size_t, size, sizeof(whole)));
	ssa_complain(s, "TCP cannot connect to %pISpc: %pe", &whole, ERR_PTR(error));
}

static int ssa_connect_start(struct socket *sock, struct sockaddr *address, int size, int flags)
{
	bool nonblock = flags & O_NONBLOCK;
	struct sock *sk = sock->sk;
	struct ssa_sock *s = ssa_sk(sk);
	bool named;
	int error;

	error = ssa_refused(s);
	if (error)
		return error;
	error = sock_error(sk);		/* of a non-blocking attempt that nobody has asked about */
	if (error)
		return error;
	if (s->reset) {
		struct sockaddr unspecified = { .sa_family = AF_UNSPEC };

		READ_ONCE(s->inner->ops)
			->connect(s->inner, &unspecified, sizeof(unspecified), O_NONBLOCK);
		s->reset = false;
	}
	named = address->sa_family == AF_HOSTNAME;
	if (named) {
		if (!ssa_is_host((const struct sockaddr_host *)address, size)) {
			ssa_complain(s, "a struct sockaddr_host has a port and a name with a NUL");
			return -EINVAL;
		}
		s->cred = get_current_cred();
	} else {
		ssa_carry_to(sk, s->inner->sk);
		error = READ_ONCE(s->inner->ops)
				->connect(s->inner, address, size, flags | O_NONBLOCK);
		if (error && error != -EINPROGRESS) {
			ssa_complain_of_connect(s, address, size, error);
			return error;
		}
	}
	ssa_complain(s, NULL);
	sk->sk_state = TCP_SYN_SENT;
	sock->state = SS_CONNECTING;
	ssa_set_state(s, SSA_CONNECTING);
	error = ssa_announce_connect(sk, address, size, named, nonblock);
	if (error) {
		ssa_finish(sk, -error);
		sock->state = SS_UNCONNECTED;
		return sock_error(sk) ?: error;
	}
	return ssa_await(sock, nonblock);
}

static bool ssa_unspecified(const struct sockaddr *address)
{
	return address->sa_family == AF_UNSPEC;
}

static int ssa_connect(struct socket *sock, struct sockaddr *address, int size, int flags)
{
	struct sock *sk = sock->sk;
	struct ssa_sock *s = ssa_sk(sk);
	int error;

	if (size < (int)sizeof(address->sa_family))
		return -EINVAL;
	lock_sock(sk);
	switch (s->state) {
	case SSA_NEW:
		if (ssa_unspecified(address)) {
			sock_error(sk);
			sock->state = SS_UNCONNECTED;
			error = 0;
		} else {
			error = ssa_connect_start(sock, address, size, flags);
		}
		break;
	case SSA_CONNECTING:
		if (ssa_unspecified(address))
			error = -EOPNOTSUPP;
		else if (flags & O_NONBLOCK)
			error = -EALREADY;
		else	/* the restart of one that a signal has interrupted */
			error = ssa_await(sock, false);
		if (error == -EINPROGRESS && !(flags & O_NONBLOCK))
			error = -EALREADY;
		break;
	case SSA_ESTABLISHED:
		if (ssa_unspecified(address)) {
			error = -EOPNOTSUPP;
		} else if (sock->state == SS_CONNECTING) {
			/* as TCP: the first one after the end of an attempt */
			sock->state = SS_CONNECTED;
			error = 0;
		} else {
			error = -EISCONN;
		}
		break;
	case SSA_LISTEN:
		error = ssa_unspecified(address) ? -EOPNOTSUPP : -EISCONN;
		break;
	default:
		error = ssa_unspecified(address) ? -EOPNOTSUPP : -ENETDOWN;
	}
	release_sock(sk);
	return error;
}

/*
 * The inner socket, held: without the lock of the TLS socket another one may take its place at any
 * time.
 */
struct file *ssa_hold_inner(struct ssa_sock *s)
{
	struct sock *sk = (struct sock *)s;
	struct file *file;

	lock_sock(sk);
	file = get_file(s->inner_file);
	release_sock(sk);
	return file;
}

static int ssa_getname(struct socket *sock, struct sockaddr *address, int peer)
{
	struct ssa_sock *s = ssa_sk(sock->sk);
	struct socket *inner;
	struct file *file;
	int size;

	if (peer == 1 && ssa_state(s) != SSA_ESTABLISHED)
		return -ENOTCONN;
	file = ssa_hold_inner(s);
	inner = sock_from_file(file);
	size = READ_ONCE(inner->ops)->getname(inner, address, peer ? 2 : 0);
	fput(file);
	return size;
}

#define SSA_OPS(name, ops_family)			\
static const struct proto_ops name = {			\
	.family = ops_family,				\
	.owner = THIS_MODULE,				\
	.release = ssa_release,				\
	.bind = ssa_bind,				\
	.connect = ssa_connect,				\
	.socketpair = sock_no_socketpair,		\
	.accept = ssa_accept,				\
	.getname = ssa_getname,				\
	.poll = ssa_poll,				\
	.ioctl = ssa_ioctl,				\
	.listen = ssa_listen,				\
	.shutdown = ssa_shutdown,			\
	.setsockopt = ssa_setsockopt,			\
	.getsockopt = ssa_getsockopt,			\
	.sendmsg = ssa_sendmsg,				\
	.recvmsg = ssa_recvmsg,				\
	.mmap = sock_no_mmap,				\
	.show_fdinfo = ssa_show_fdinfo,			\
	SSA_SENDPAGE					\
}

#define SSA_NO_OFFSET
#define SSA_PROTO(symbol, text, type, offset)		\
struct proto symbol = {					\
	.name = text,					\
	.owner = THIS_MODULE,				\
	.obj_size = sizeof(type),			\
	.init = ssa_init_sock,				\
	.destroy = ssa_destroy,				\
	.unhash = ssa_unhash,				\
	.keepalive = ssa_keepalive,			\
	.close = ssa_close,				\
	offset						\
}

SSA_OPS(ssa_ops, PF_INET);
SSA_PROTO(ssa_prot, "SSA", struct ssa_sock, SSA_NO_OFFSET);

struct inet_protosw ssa_protosw = {
	.type = SOCK_STREAM,
	.protocol = IPPROTO_TLS,
	.prot = &ssa_prot,
	.ops = &ssa_ops,
};

#if IS_ENABLED(CONFIG_IPV6)
SSA_OPS(ssa6_ops, PF_INET6);
SSA_PROTO(ssa6_prot, "SSAv6", struct ssa6_sock, SSA_IPV6_OFFSET);

struct inet_protosw ssa6_protosw = {
	.type = SOCK_STREAM,
	.protocol = IPPROTO_TLS,
	.prot = &ssa6_prot,
	.ops = &ssa6_ops,
};
#endif
