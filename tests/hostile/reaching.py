"""Programs that stay on, or reach for processes, the network and files."""

from __future__ import annotations

from functools import partial

from program import C, Program, add

PROGRAMS: list[Program] = []
attack = partial(add, PROGRAMS)

# staying on, and reaching for other processes
attack("sleeping children", """
    import os, time
    for _ in range(5):
        if not os.fork():
            time.sleep(10**6)
    return False
""")
attack("a daemon", """
    import os, time
    if not os.fork():
        os.setsid()
        if not os.fork():
            time.sleep(10**6)
        os._exit(0)
    return False
""")
attack("children that ignore every signal", """
    import os, signal
    for _ in range(4):
        if not os.fork():
            for number in range(1, 65):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    pass
            while True: pass
    return False
""")
attack("outliving its parent", """
    libc.prctl(1, 0, 0, 0, 0)
    os.setsid() if os.getpid() != os.getsid(0) else None
    while True: pass
""", before=C, says="timed out|killed")
attack("another program in the background", """
    import subprocess
    subprocess.Popen(["/bin/sh", "-c", "while true; do sleep 1; done"], start_new_session=True)
    return False
""")
attack("killing its parent", "import os\nos.kill(os.getppid(), 9)\nreturn True", says="failed|worker died")
attack("killing everybody", "import os\nos.kill(-1, 9)\nreturn 'not reached' == ''", says="failed|killed|left|died")
attack("stopping its parent", "import os\nos.kill(os.getppid(), 19)\nreturn None", says="failed|timed out")
attack("signalling the trainer", "import os\nos.kill({trainer}, 0)\nreturn True", says="ProcessLookupError|Permission")
attack("killing its process group", "import os\nos.killpg(os.getpgid(0), 9)\nreturn 0", says="failed|killed|died")
attack("tracing its parent", "return libc.ptrace(16, os.getppid(), 0, 0) == 0", before=C)
attack("reading its parent's memory", """
    buffer = ctypes.create_string_buffer(8)
    piece = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
    return libc.process_vm_readv(os.getppid(), piece, 1, piece, 1, 0) > 0
""", before=C)
attack("its parent's memory as a file", "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb')\nreturn True")
attack("its parent's files", "import os\nreturn len(os.listdir(f'/proc/{os.getppid()}/fd')) > 0")
attack("its parent's file by pidfd", """
    pidfd = os.pidfd_open(os.getppid())
    return libc.syscall(438, pidfd, 0, 0) >= 0
""", before=C)

# the network
attack("a connection to this machine", "import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)\nreturn True")
attack("a connection to the world", "import socket\nsocket.create_connection(('1.1.1.1', 53), 2)\nreturn True")
attack("a datagram", """
    import socket
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", {port}))
    return True
""")
attack("a server", "import socket\nsocket.create_server(('127.0.0.1', 0))\nreturn True")
attack("an abstract socket", """
    import socket
    socket.socket(socket.AF_UNIX).connect(chr(0) + "{abstract}")
    return True
""")
attack("a socket by io_uring", "return libc.syscall(425, 8, ctypes.create_string_buffer(256)) >= 0", before=C)
attack("names of network devices", "import socket\nreturn len(socket.if_nameindex()) > 1")

# files
attack("a file of the user", "return 'secret' in open('{secret}').read()")
attack("the home folder", """
    import os
    return len(os.listdir(os.path.dirname('{secret}'))) > 0
""")
attack("the password file", "return 'root' in open('/etc/passwd').read()")
attack("the environment", "import os\nreturn any('trainer' in value for value in os.environ.values())")
attack("everybody's environment", """
    import glob
    return any(b"trainer" in open(path, "rb").read() for path in glob.glob("/proc/*/environ")) or None
""")
attack("writing outside", "open('{outside}/written', 'w').write('x')\nreturn True")
attack("writing anywhere", """
    import os, sys
    written = []
    for folder in ("/", "/usr", "/usr/lib", "/var/tmp", "/dev/shm", "/dev", "/etc", "/root", "/home", sys.prefix,
                   os.path.dirname(os.__file__), os.path.expanduser("~root")):
        try:
            open(os.path.join(folder, "lit-cpt-written"), "w").close()
            written.append(folder)
        except OSError:
            pass
    return len(written) > 0
""")
attack("a symbolic link for reading", """
    import os
    os.symlink('{secret}', '/tmp/link')
    return 'secret' in open('/tmp/link').read()
""")
attack("a symbolic link for writing", """
    import os
    os.symlink('{outside}', '/tmp/link')
    open('/tmp/link/written', 'w').write('x')
    return True
""")
attack("a hard link", "import os\nos.link('{secret}', '/tmp/link')\nreturn True")
attack("climbing out", "return 'secret' in open('/tmp/' + '../' * 20 + '{secret}').read()")
attack("changing root", "import os\nos.chroot('/tmp')\nreturn True")
attack("the old root", """
    before = os.open("/", os.O_RDONLY)
    libc.syscall(155, b".", b".")
    os.fchdir(before)
    return os.path.exists("../../../../{secret}")
""", before=C)
attack("mounting", "return libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == 0", before=C)
attack("unmounting", "return libc.umount2(b'/tmp', 2) == 0 or libc.umount2(b'/usr', 2) == 0", before=C)
attack("a user namespace", "return libc.unshare(0x10000000) == 0", before=C)
attack("a user namespace by clone", "return libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0) >= 0", before=C)
attack("a device", "import os\nos.mknod('/tmp/disk', 0o60666, os.makedev(254, 0))\nreturn True", says="PermissionError")
attack("the kernel's own files", """
    held = []
    for name in ("/dev/kmsg", "/dev/mem", "/dev/vda", "/dev/sda", "/proc/kcore", "/sys/kernel/debug",
                 "/proc/sysrq-trigger"):
        try:
            held.append(open(name, "rb"))
        except OSError:
            pass
    return len(held) > 0
""")
attack("becoming root", "import os\nos.setuid(0)\nreturn True", says="PermissionError|OSError")
attack("becoming root by su", """
    import subprocess
    said = subprocess.run("su -c id; sudo -n id; pkexec id", shell=True, capture_output=True, text=True).stdout
    return "uid=0" in said
""")
attack("a program that is root's", """
    import os, shutil
    shutil.copy("/bin/sh", "/tmp/sh")
    os.chown("/tmp/sh", 0, 0)
    return True
""")
attack("the trainer's keys",
       "return libc.syscall(250, 0, -3, 0) >= 0 and libc.syscall(250, 11, -3, 0, 0) > 0", before=C)
attack("open files of its parents", """
    import os
    held = []
    for number in range(3, 256):
        try:
            held.append(os.fstat(number).st_mode)
        except OSError:
            pass
    import stat
    return any(not stat.S_ISFIFO(mode) for mode in held)
""")
