# SPDX-License-Identifier: MIT
"""
Metadata and contents of the distribution.

The packages are listed one by one.  The modules of C{twisted/plugins} are installed into Twisted's plug-in directory, which
is a namespace of many distributions: there must be no C{__init__.py} in C{twisted} or C{twisted/plugins}.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
PLUGINS = ("twisted/plugins/ssa_plugin.py", "twisted/plugins/ssa_validators.py")


class BuildWithPlugin(build_py):
    """
    C{build_py} that adds the plug-ins as lone modules.

    Listing C{twisted.plugins} as a package would make it this distribution's, and an uninstall or an editable install
    could shadow Twisted itself.
    """

    def run(self) -> None:
        """Build the packages, then put the plug-ins beside them."""
        super().run()
        if not self.editable_mode:
            for plugin in PLUGINS:
                target = Path(self.build_lib, plugin)
                self.mkpath(str(target.parent))
                self.copy_file(str(ROOT / plugin), str(target))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """What is installed, for the record that an uninstall reads."""
        outputs: list[str] = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else [*outputs, *(str(Path(self.build_lib, plugin)) for plugin in PLUGINS)]


def version() -> str:
    """The version, from the one place where it is written."""
    for line in (ROOT / "ssa" / "version.py").read_text(encoding="utf-8").splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise ValueError("ssa/version.py has no __version__")


setup(
    name="ssa",
    version=version(),
    description="TLS as a service of the operating system: IPPROTO_TLS in socket(2)",
    long_description=(ROOT / "README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    license="MIT",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Environment :: No Input/Output (Daemon)",
        "Framework :: Twisted",
        "Intended Audience :: Developers",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Security :: Cryptography",
        "Topic :: System :: Networking",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=[
        "ssa",
        "ssa.intercept",
        "ssa.netlink",
        "ssa.policy",
        "ssa.protocol",
        "ssa.revocation",
        "ssa.test",
        "ssa.test.conformance",
        "ssa.test.scanners",
        "ssa.test.vectors",
        "ssa.test.vm",
        "ssa.test.vm.guest",
        "ssa.test.vm.guest.ktls",
        "ssa.tls",
    ],
    package_data={"ssa": ["py.typed"], "ssa.test.conformance": ["authority.pem"]},
    data_files=[("share/ssa", ["conf/ssa.conf", "conf/ssa.service"])] if (ROOT / "conf" / "ssa.conf").exists() else [],
    cmdclass={"build_py": BuildWithPlugin},
    entry_points={"console_scripts": ["ssa = ssa.cli:main"]},
    install_requires=[
        # The reactor, its adopted descriptors, services and plug-ins; the release that supports Python 3.13.
        "twisted >= 24.10.0",
        # TLS on the real socket: Connection.set_options is of 26.2.0, get_group_name of 26.0.0.
        "pyopenssl >= 26.2.0",
        # Whether a certificate names the host: verify_hostname and verify_ip_address on pyOpenSSL connections.
        "service_identity >= 24.1.0",
        # The interfaces between the parts; mypy-zope checks them.
        "zope.interface >= 6.0",
        # The socket's states (Twisted needs it too, but it is imported directly): TypeMachineBuilder.
        "automat >= 24.8.1",
    ],
    extras_require={
        "test": [
            # Properties of the codecs and parsers on generated input.
            "hypothesis >= 6.100",
            # Another implementation of netlink, with which ours has to agree.
            "pyroute2 >= 0.9.1",
            # The protocol's definition, kernel-module/ssa.yaml, is compared with the code.
            "pyyaml >= 6.0",
        ],
        "dev": [
            "hypothesis >= 6.100",
            "pyroute2 >= 0.9.1",
            "pyyaml >= 6.0",
            "types-PyYAML",
            "types-setuptools",
            "ruff >= 0.6",
            "mypy >= 1.11",
            "mypy-zope >= 1.0.8",
            "pydoctor >= 24.11",
            "sphinx >= 7.3",
            "towncrier >= 23.11",
        ],
    },
)
