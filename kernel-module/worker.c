// SPDX-License-Identifier: GPL-2.0-only
/*
 * The daemon's workers, and the events that each has not fetched yet.
 *
 * A worker is a netlink socket that has registered.  Workers of one daemon have registered with the
 * same secret number; a TLS socket belongs to one of them from its first event to its last, and so
 * do the connections that a listener accepts. A registration is named by its session, a number that
 * is never used twice; that of a worker that is gone stands for nobody, for ever.
 */
#include <linux/module.h>

#include "ssa.h"

#define SSA_WORKERS	64

struct ssa_worker {
	unsigned int session;	/* 0: the place is free */
	u32 portid;
	unsigned int sockets;
	bool kicked;		/* it knows that there are events */
	struct list_head events;
};

static DEFINE_SPINLOCK(ssa_worker_lock);
static struct ssa_worker ssa_workers[SSA_WORKERS];
static unsigned int ssa_sessions;
static unsigned int ssa_worker_count;
static u64 ssa_daemon;		/* what the workers have in common; 0: there may be only one */

/* Under the lock. */
static struct ssa_worker *ssa_worker_find(unsigned int session)
{
	struct ssa_worker *worker;

	if (!session)
		return NULL;
	for (worker = ssa_workers; worker < ssa_workers + SSA_WORKERS; worker++) {
		if (worker->session == session)
			return worker;
	}
	return NULL;
}

/*
 * A worker registers, perhaps again; 0, or -EBUSY: another daemon has, or there are too many
 * workers.
 */
int ssa_worker_add(u32 portid, u64 daemon)
{
	struct ssa_worker *worker, *free = NULL;
	int error = -EBUSY;

	spin_lock(&ssa_worker_lock);
	for (worker = ssa_workers; worker < ssa_workers + SSA_WORKERS; worker++) {
		if (!worker->session) {
			free = free ?: worker;
		} else if (worker->portid == portid) {
			error = 0;	/* its answer was lost */
			goto unlock;
		}
	}
	if (!free || (ssa_worker_count && (!daemon || daemon != ssa_daemon)))
		goto unlock;
	if (!++ssa_sessions)
		ssa_sessions = 1;
	INIT_LIST_HEAD(&free->events);
	free->portid = portid;
	free->sockets = 0;
	free->kicked = false;
	free->session = ssa_sessions;
	ssa_daemon = daemon;
	ssa_worker_count++;
	error = 0;
unlock:
	spin_unlock(&ssa_worker_lock);
	return error;
}

/*
 * A netlink socket is released.  Returns its session, 0 if it was no worker's; *last: no worker is
 * left.
 */
unsigned int ssa_worker_remove(u32 portid, struct list_head *events, bool *last)
{
	struct ssa_worker *worker;
	unsigned int session = 0;

	spin_lock(&ssa_worker_lock);
	for (worker = ssa_workers; worker < ssa_workers + SSA_WORKERS; worker++) {
		if (!worker->session || worker->portid != portid)
			continue;
		session = worker->session;
		worker->session = 0;
		list_splice_init(&worker->events, events);
		ssa_worker_count--;
		break;
	}
	*last = !ssa_worker_count;
	spin_unlock(&ssa_worker_lock);
	return session;
}

/* The session of a sender, 0 if it is no worker. */
unsigned int ssa_worker_session(u32 portid)
{
	struct ssa_worker *worker;
	unsigned int session = 0;

	spin_lock(&ssa_worker_lock);
	for (worker = ssa_workers; worker < ssa_workers + SSA_WORKERS; worker++) {
		if (worker->session && worker->portid == portid)
			session = worker->session;
	}
	spin_unlock(&ssa_worker_lock);
	return session;
}

/* For a new socket: the session of the worker that has the fewest, 0 if there is none. */
unsigned int ssa_worker_take(void)
{
	struct ssa_worker *worker, *idlest = NULL;
	unsigned int session = 0;

	spin_lock(&ssa_worker_lock);
	for (worker = ssa_workers; worker < ssa_workers + SSA_WORKERS; worker++) {
		if (worker->session && (!idlest || worker->sockets < idlest->sockets))
			idlest = worker;
	}
	if (idlest) {
		idlest->sockets++;
		session = idlest->session;
	}
	spin_unlock(&ssa_worker_lock);
	return session;
}

/* For an accepted socket: that of its listener, 0 if the worker is gone. */
unsigned int ssa_worker_share(unsigned int session)
{
	struct ssa_worker *worker;

	spin_lock(&ssa_worker_lock);
	worker = ssa_worker_find(session);
	if (worker)
		worker->sockets++;
	spin_unlock(&ssa_worker_lock);
	return worker ? session : 0;
}

/* A socket is gone. */
void ssa_worker_drop(unsigned int session)
{
	struct ssa_worker *worker;

	spin_lock(&ssa_worker_lock);
	worker = ssa_worker_find(session);
	if (worker)
		worker->sockets--;
	spin_unlock(&ssa_worker_lock);
}

/* Whether a worker is still there. */
bool ssa_worker_alive(unsigned int session)
{
	bool alive;

	spin_lock(&ssa_worker_lock);
	alive = ssa_worker_find(session);
	spin_unlock(&ssa_worker_lock);
	return alive;
}

/*
 * Put an event into the list of its worker, which takes over a reference; -ENETDOWN, and no
 * reference, if it is gone.
 */
int ssa_worker_post(struct ssa_event *event)
{
	struct ssa_worker *worker;
	u32 portid = 0;

	spin_lock(&ssa_worker_lock);
	worker = ssa_worker_find(event->session);
	if (worker) {
		list_add_tail(&event->link, &worker->events);
		if (!worker->kicked)
			portid = worker->portid;
		worker->kicked = true;
	}
	spin_unlock(&ssa_worker_lock);
	if (portid)
		ssa_kick(portid);
	return worker ? 0 : -ENETDOWN;
}

/*
 * The oldest event that a worker has not fetched, with its reference; NULL: there is none, and the
 * next one kicks again.
 */
struct ssa_event *ssa_worker_next(unsigned int session)
{
	struct ssa_event *event = NULL;
	struct ssa_worker *worker;

	spin_lock(&ssa_worker_lock);
	worker = ssa_worker_find(session);
	if (worker) {
		event = list_first_entry_or_null(&worker->events, struct ssa_event, link);
		if (event)
			list_del_init(&event->link);
		else
			worker->kicked = false;
	}
	spin_unlock(&ssa_worker_lock);
	return event;
}

/* Put an event back that could not be handed over; takes the reference. */
void ssa_worker_return(struct ssa_event *event)
{
	struct ssa_worker *worker;

	spin_lock(&ssa_worker_lock);
	worker = ssa_worker_find(event->session);
	if (worker)
		list_add(&event->link, &worker->events);
	spin_unlock(&ssa_worker_lock);
	if (!worker)
		ssa_event_put(event);
}

/* Nobody waits for an event any more: if its worker has not fetched it, it never will. */
void ssa_worker_withdraw(struct ssa_event *event)
{
	bool listed;

	spin_lock(&ssa_worker_lock);
	listed = ssa_worker_find(event->session) && !list_empty(&event->link);
	if (listed)
		list_del_init(&event->link);
	spin_unlock(&ssa_worker_lock);
	if (listed)
		ssa_event_put(event);
}

/*
 * The module is unloaded, no socket is left, and nobody asks any more: what the last ones had to
 * say ends unheard.
 */
void ssa_workers_forget(void)
{
	struct ssa_worker *worker;
	LIST_HEAD(events);
	bool last;

	for (worker = ssa_workers; worker < ssa_workers + SSA_WORKERS; worker++) {
		unsigned int session = worker->session;

		if (session && ssa_worker_remove(worker->portid, &events, &last))
			ssa_events_fail(session, &events, -ENETDOWN);
	}
}
