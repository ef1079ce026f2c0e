// SPDX-License-Identifier: GPL-2.0-only
/*
 * Listeners: listen, the connections whose handshake has ended, accept.
 */
#include <linux/module.h>
#include <net/tcp.h>

#include "ssa.h"

/* End a connection that no program has got. */
void ssa_child_drop(struct sock *child)
{
	struct ssa_sock *s = ssa_sk(child);

	lock_sock(child);
	ssa_set_state(s, SSA_CLOSED);
	child->sk_state = TCP_CLOSE;
	release_sock(child);
	if (s->closing)
		ssa_event_post(s->closing);
	sk_common_release(child);
}

/* End all that are in a listener's queue. */
void ssa_children_drop(struct list_head *queue)
{
	struct ssa_sock *child, *next;

	list_for_each_entry_safe(child, next, queue, link) {
		list_del_init(&child->link);
		ssa_child_drop((struct sock *)child);
	}
}

/* The same for one that the daemon has not heard of. */
void ssa_child_discard(struct sock *child)
{
	ssa_event_put(ssa_sk(child)->closing);
	ssa_sk(child)->closing = NULL;
	ssa_child_drop(child);
}

int ssa_listen(struct socket *sock, int backlog)
{
	struct sock *sk = sock->sk;
	struct ssa_sock *s = ssa_sk(sk);
	struct sockaddr_storage local;
	struct ssa_event *event;
	u32 wanted;
	int error, size;

	lock_sock(sk);
	error = -EINVAL;
	if (s->state == SSA_DEAD) {
		error = ssa_refused(s);
		goto unlock;
	}
	if (s->state != SSA_NEW && s->state != SSA_LISTEN) {
		ssa_complain(s, "listen: the socket is connected or connecting");
		goto unlock;
	}
	error = ssa_refused(s);
	if (error)
		goto unlock;
	wanted = min_t(unsigned int, backlog, READ_ONCE(sock_net(sk)->core.sysctl_somaxconn));
	ssa_carry_to(sk, s->inner->sk);
	size = ssa_address(s->inner, false, &local);
	error = size;
	if (size < 0)
		goto unlock;
	event = ssa_event_new(sk, SSA_C_LISTEN_NOTIFY, SSA_ADDRESS_SIZE + 16);
	error = PTR_ERR_OR_ZERO(event);
	if (error)
		goto unlock;
	ssa_event_add(event, SSA_A_BACKLOG, &wanted, sizeof(wanted));
	ssa_event_add(event, SSA_A_SOCKADDR_EXTERNAL, &local, size);
	s->backlog = wanted;
	/* Listens before it is asked for: the daemon's refusal ends it again. */
	error = READ_ONCE(s->inner->ops)->listen(s->inner, backlog);
	if (error) {
		ssa_complain(s, "listen: %pe", ERR_PTR(error));
	} else {
		enum ssa_state old = s->state;

		ssa_complain(s, NULL);
		sk->sk_max_ack_backlog = wanted;
		sk->sk_state = TCP_LISTEN;
		ssa_set_state(s, SSA_LISTEN);
		error = ssa_event_post(event);
		release_sock(sk);
		if (!error)
			error = ssa_event_wait(event);
		lock_sock(sk);
		if (error && error != -ERESTARTSYS && old == SSA_NEW && s->state == SSA_LISTEN) {
			sk->sk_state = TCP_CLOSE;
			ssa_set_state(s, SSA_NEW);
			kernel_sock_shutdown(s->inner, SHUT_RDWR);
		}
	}
	ssa_event_put(event);
unlock:
	release_sock(sk);
	return error;
}

/*
 * A connection whose handshake has ended, not yet in a program.  Takes its own references of the
 * files.
 */
struct sock *ssa_child_new(struct sock *listener, struct file *tcp, struct file *data, bool ktls)
{
	struct ssa_sock *parent = ssa_sk(listener);
	struct ssa_sock *s;
	struct sock *sk;
	int error;

	sk = sk_alloc(sock_net(listener), listener->sk_family, GFP_KERNEL, listener->sk_prot, 0);
	if (!sk)
		return ERR_PTR(-ENOMEM);
	sock_init_data(NULL, sk);
	sk->sk_protocol = IPPROTO_TLS;
	sk->sk_destruct = inet_sock_destruct;
	sk->sk_type = SOCK_STREAM;
	sk->sk_backlog_rcv = listener->sk_prot->backlog_rcv;
#if IS_ENABLED(CONFIG_IPV6)
	if (sk->sk_family == AF_INET6)
		inet_sk(sk)->pinet6 = &((struct ssa6_sock *)sk)->np;
#endif
	ssa_fields(sk);
	s = ssa_sk(sk);
	s->session = ssa_worker_share(parent->session);
	s->inner_file = get_file(tcp);
	s->inner = sock_from_file(tcp);
	s->data_file = get_file(data);
	s->data = sock_from_file(data);
	s->ktls = ktls;
	s->nodelay = parent->nodelay;
	s->cork = parent->cork;
	ssa_apply_delays(s);
	/* Chosen since listen: 6.1 does not tell of that, so the listener's own may not know. */
	lock_sock(s->inner->sk);
	ssa_carry_buffers(listener, s->inner->sk);
	release_sock(s->inner->sk);
	ssa_inherit(sk, s->inner->sk);
	sk->sk_rcvtimeo = listener->sk_rcvtimeo;
	sk->sk_sndtimeo = listener->sk_sndtimeo;
	sk->sk_rcvlowat = listener->sk_rcvlowat;
	/* The inner one's was taken back: the daemon's close must not wait. */
	sk->sk_lingertime = listener->sk_lingertime;
	sock_valbool_flag(sk, SOCK_LINGER, sock_flag(listener, SOCK_LINGER));
	sock_valbool_flag(sk, SOCK_URGINLINE, sock_flag(listener, SOCK_URGINLINE));
	sk->sk_state = TCP_ESTABLISHED;
	ssa_set_state(s, SSA_ESTABLISHED);
	/* It counts for the user of the listener. */
	error = ssa_user_share(s, parent);
	if (!error)
		error = ssa_prepare_close(s);
	if (!error)
		error = ssa_publish(sk);
	if (error) {
		ssa_child_discard(sk);
		return ERR_PTR(error);
	}
	return sk;
}

/* Wait for a connection in the queue.  Under lock_sock, which is given up meanwhile. */
static struct ssa_sock *ssa_queue_wait(struct sock *sk, int flags, int *error)
{
	struct ssa_sock *s = ssa_sk(sk), *child;
	long timeout = sock_rcvtimeo(sk, flags & O_NONBLOCK);
	DEFINE_WAIT(wait);

	for (;;) {
		*error = s->state == SSA_DEAD ? -ENETDOWN : -EINVAL;
		if (s->state != SSA_LISTEN)
			return NULL;
		child = list_first_entry_or_null(&s->queue, struct ssa_sock, link);
		if (child) {
			list_del_init(&child->link);
			s->queued--;
			*error = 0;
			return child;
		}
		*error = -EAGAIN;
		if (!timeout)
			return NULL;
		*error = sock_intr_errno(timeout);
		if (signal_pending(current))
			return NULL;
		prepare_to_wait_exclusive(sk_sleep(sk), &wait, TASK_INTERRUPTIBLE);
		release_sock(sk);
		timeout = schedule_timeout(timeout);
		lock_sock(sk);
		finish_wait(sk_sleep(sk), &wait);
	}
}

SSA_ACCEPT(ssa_accept)
{
	struct sock *sk = sock->sk;
	struct ssa_sock *child;
	struct ssa_event *event;
	int error;

	lock_sock(sk);
	child = ssa_queue_wait(sk, SSA_ACCEPT_FLAGS, &error);
	if (child) {
		struct sock *new = (struct sock *)child;

		lock_sock_nested(new, SINGLE_DEPTH_NESTING);
		ssa_graft(child, newsock);
		sock_graft(new, newsock);
		ssa_relay_start(child);
		newsock->state = SS_CONNECTED;
		release_sock(new);
	}
	release_sock(sk);
	if (error)
		return error;
	event = ssa_event_new((struct sock *)child, SSA_C_ACCEPT_NOTIFY, SSA_CALLER_SIZE);
	if (!IS_ERR(event)) {
		if (!ssa_event_add_caller(event))
			ssa_event_post(event);
		ssa_event_put(event);
	}
	return 0;
}
