// SPDX-License-Identifier: GPL-2.0-only
/*
 * The Secure Socket API: TLS as a socket protocol.
 */
#include <linux/module.h>
#include <net/inet_common.h>
#include <net/protocol.h>
#include <net/transp_v6.h>

#include "ssa.h"

static int __init ssa_init(void)
{
	int error;

	/* Numbers of events and sockets are 64 bits, and index arrays. */
	BUILD_BUG_ON(sizeof(unsigned long) < sizeof(u64));
	error = proto_register(&ssa_prot, 1);
	if (error)
		return error;
#if IS_ENABLED(CONFIG_IPV6)
	error = proto_register(&ssa6_prot, 1);
	if (error)
		goto unregister_prot;
#endif
	error = ssa_proc_register();
	if (error)
		goto unregister_prot6;
	error = ssa_netlink_register();
	if (error)
		goto unregister_proc;
	/* First the one that can fail: afterwards there may be sockets, which nothing here ends. */
#if IS_ENABLED(CONFIG_IPV6)
	error = inet6_register_protosw(&ssa6_protosw);
	if (error)
		goto unregister_netlink;
#endif
	inet_register_protosw(&ssa_protosw);
	return 0;

#if IS_ENABLED(CONFIG_IPV6)
unregister_netlink:
	ssa_netlink_unregister();
#endif
unregister_proc:
	ssa_proc_unregister();
unregister_prot6:
#if IS_ENABLED(CONFIG_IPV6)
	proto_unregister(&ssa6_prot);
unregister_prot:
#endif
	proto_unregister(&ssa_prot);
	return error;
}

/* Every socket holds the module, so none exists here. */
static void __exit ssa_exit(void)
{
#if IS_ENABLED(CONFIG_IPV6)
	inet6_unregister_protosw(&ssa6_protosw);
#endif
	inet_unregister_protosw(&ssa_protosw);
	ssa_netlink_unregister();
	ssa_proc_unregister();
#if IS_ENABLED(CONFIG_IPV6)
	proto_unregister(&ssa6_prot);
#endif
	proto_unregister(&ssa_prot);
}

module_init(ssa_init);
module_exit(ssa_exit);

MODULE_DESCRIPTION("Secure Socket API: TLS as a socket protocol");
MODULE_LICENSE("GPL");
MODULE_ALIAS_NET_PF_PROTO_TYPE(PF_INET, IPPROTO_TLS, SOCK_STREAM);
#if IS_ENABLED(CONFIG_IPV6)
MODULE_ALIAS_NET_PF_PROTO_TYPE(PF_INET6, IPPROTO_TLS, SOCK_STREAM);
#endif
