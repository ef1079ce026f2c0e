// SPDX-License-Identifier: GPL-2.0-only
/*
 * /proc/net/ssa: the TLS sockets of a network namespace, and what /proc/PID/fdinfo says of each.
 *
 * The inner TCP sockets stand in /proc/net/tcp, and in what ss shows, under the inode that both
 * name here.
 */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <net/net_namespace.h>

#include "ssa.h"

static const char * const ssa_states[] = {
	[SSA_NEW] = "new",
	[SSA_CONNECTING] = "connecting",
	[SSA_ESTABLISHED] = "established",
	[SSA_LISTEN] = "listen",
	[SSA_DEAD] = "dead",
	[SSA_CLOSED] = "closed",
};

static const char *ssa_path(const struct ssa_sock *s)
{
	if (ssa_state(s) != SSA_ESTABLISHED)
		return "-";
	return s->ktls ? "ktls" : "relay";
}

static unsigned long ssa_inode(struct socket *sock)
{
	return SOCK_INODE(sock)->i_ino;
}

void ssa_show_fdinfo(struct seq_file *seq, struct socket *sock)
{
	struct sock *sk = sock->sk;
	struct ssa_sock *s = ssa_sk(sk);

	lock_sock(sk);
	seq_printf(seq, "ssa-id:\t%llu\n", s->id);
	seq_printf(seq, "ssa-state:\t%s\n", ssa_states[s->state]);
	seq_printf(seq, "ssa-data-path:\t%s\n", ssa_path(s));
	seq_printf(seq, "ssa-tcp-inode:\t%lu\n", ssa_inode(s->inner));
	release_sock(sk);
}

/* The first socket of the namespace with a number of at least that, held. */
static struct sock *ssa_seq_find(struct seq_file *seq, loff_t *position)
{
	struct net *net = seq_file_net(seq);
	unsigned long id = *position;
	struct sock *sk;

	xa_lock(&ssa_sockets);
	sk = xa_find(&ssa_sockets, &id, ULONG_MAX, XA_PRESENT);
	while (sk && !net_eq(sock_net(sk), net))
		sk = xa_find_after(&ssa_sockets, &id, ULONG_MAX, XA_PRESENT);
	if (sk)
		sock_hold(sk);
	xa_unlock(&ssa_sockets);
	*position = id;
	return sk;
}

static void *ssa_seq_start(struct seq_file *seq, loff_t *position)
{
	return *position ? ssa_seq_find(seq, position) : SEQ_START_TOKEN;
}

static void ssa_seq_stop(struct seq_file *seq, void *found)
{
	if (found && found != SEQ_START_TOKEN)
		sock_put(found);
}

static void *ssa_seq_next(struct seq_file *seq, void *found, loff_t *position)
{
	ssa_seq_stop(seq, found);
	++*position;
	return ssa_seq_find(seq, position);
}

/* Without the TCP socket's lock, as /proc/net/tcp: a program can have that held at its will. */
static void ssa_seq_address(struct seq_file *seq, const struct sock *sk, bool peer)
{
	const struct inet_sock *inet = inet_sk(sk);
	__be16 port = peer ? READ_ONCE(inet->inet_dport) : READ_ONCE(inet->inet_sport);
	__be32 address = peer ? READ_ONCE(inet->inet_daddr) : READ_ONCE(inet->inet_rcv_saddr);

	if (peer && !port)
		seq_puts(seq, " -");
#if IS_ENABLED(CONFIG_IPV6)
	else if (sk->sk_family == AF_INET6)
		seq_printf(seq, " [%pI6c]:%u", peer ? &sk->sk_v6_daddr : &sk->sk_v6_rcv_saddr,
			   ntohs(port));
#endif
	else
		seq_printf(seq, " %pI4:%u", &address, ntohs(port));
}

static int ssa_seq_show(struct seq_file *seq, void *found)
{
	struct sock *sk = found;
	struct ssa_sock *s;

	if (found == SEQ_START_TOKEN) {
		seq_puts(seq, "id state data-path uid inode tcp-inode local remote\n");
		return 0;
	}
	s = ssa_sk(sk);
	lock_sock(sk);
	if (s->state != SSA_CLOSED && s->inner_file) {
		seq_printf(seq, "%llu %s %s %u %lu %lu", s->id, ssa_states[s->state], ssa_path(s),
			   from_kuid_munged(seq_user_ns(seq), s->user->uid), sock_i_ino(sk),
			   ssa_inode(s->inner));
		ssa_seq_address(seq, s->inner->sk, false);
		ssa_seq_address(seq, s->inner->sk, true);
		seq_putc(seq, '\n');
	}
	release_sock(sk);
	return 0;
}

static const struct seq_operations ssa_seq = {
	.start = ssa_seq_start,
	.next = ssa_seq_next,
	.stop = ssa_seq_stop,
	.show = ssa_seq_show,
};

static int __net_init ssa_net_init(struct net *net)
{
	struct proc_dir_entry *entry;

	entry = proc_create_net("ssa", 0444, net->proc_net, &ssa_seq,
				sizeof(struct seq_net_private));
	return entry ? 0 : -ENOMEM;
}

static void __net_exit ssa_net_exit(struct net *net)
{
	remove_proc_entry("ssa", net->proc_net);
}

static struct pernet_operations ssa_net_operations = {
	.init = ssa_net_init,
	.exit = ssa_net_exit,
};

int __init ssa_proc_register(void)
{
	return register_pernet_subsys(&ssa_net_operations);
}

void ssa_proc_unregister(void)
{
	unregister_pernet_subsys(&ssa_net_operations);
}
