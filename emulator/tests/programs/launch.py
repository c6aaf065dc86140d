"""A small launcher for /dev/nitro_enclaves, for the emulator's tests.

launch.py EIF [--debug] [--cid N] [--memory MIB] [--hold SECONDS]
Prints the CID, waits until the enclave hangs up or, with --hold, that long;
prints how it ended. Dials the console at CID 0 in debug mode and copies it.
"""
import argparse, ctypes, fcntl, mmap, os, select, socket, struct, sys, threading

CREATE_VM, ADD_VCPU, LOAD_INFO, SET_MEMORY, START = 0x8008AE20, 0xC004AE21, 0xC010AE22, 0x4018AE23, 0xC010AE24
HUGETLB = 0x40000


def call(fd, command, fmt, *values):
    data = bytearray(struct.pack(fmt, *values))
    result = fcntl.ioctl(fd, command, data)
    return result, struct.unpack(fmt, data)


def huge(size):
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | HUGETLB)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return memory, address


def prepare(eif, memory_mib, cpus=2):
    device = os.open("/dev/nitro_enclaves", os.O_RDWR | os.O_CLOEXEC)
    fd, _ = call(device, CREATE_VM, "=Q", 0)
    size = memory_mib << 20
    memory, address = huge(size)
    _, (_, offset) = call(fd, LOAD_INFO, "=QQ", 1, 0)
    image = open(eif, "rb").read()
    memory[offset:offset + len(image)] = image
    call(fd, SET_MEMORY, "=QQQ", 0, size, address)
    for _ in range(cpus):
        call(fd, ADD_VCPU, "=I", 0)
    return fd, memory


def console(cid):
    stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    stream.connect((0, 10000 + cid))
    while chunk := stream.recv(4096):
        sys.stdout.buffer.write(b"console: " + chunk)
        sys.stdout.flush()


def main():
    options = argparse.ArgumentParser()
    options.add_argument("eif")
    options.add_argument("--debug", action="store_true")
    options.add_argument("--cid", type=int, default=0)
    options.add_argument("--memory", type=int, default=64)
    options.add_argument("--hold", type=float)
    options = options.parse_args()
    fd, memory = prepare(options.eif, options.memory)
    _, (_, cid) = call(fd, START, "=QQ", int(options.debug), options.cid)
    print(f"cid {cid}", flush=True)
    if options.debug:
        reader = threading.Thread(target=console, args=(cid,))
        reader.start()
    poll = select.poll()
    poll.register(fd, 0)
    ended = poll.poll(None if options.hold is None else options.hold * 1000)
    if options.hold is not None and not ended:
        os.close(fd)
        print("closed", flush=True)
        return
    if options.debug:
        reader.join()
    print(f"hung up {ended[0][1]:#x}", flush=True)


if __name__ == "__main__":
    main()
