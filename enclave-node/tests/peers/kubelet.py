"""A stand-in for kubelet on gRPC's C core, told what to do line by line.

usage: kubelet.py DIRECTORY GENERATED AUTHORITY REFUSALS EMPTIES
Follows kubelet's pkg/kubelet/cm/devicemanager/plugin/v1beta1: empties the
directory, listens, dials back within Register. Every event is a line of JSON
on stdout; kubelet.go speaks the same language.
"""
import json
import os
import sys
import threading
import time
from concurrent import futures

DIRECTORY, GENERATED, AUTHORITY, REFUSALS, EMPTIES = sys.argv[1:6]
sys.path.insert(0, GENERATED)
import grpc  # noqa: E402
import v1beta1_pb2 as api  # noqa: E402
import v1beta1_pb2_grpc as services  # noqa: E402

printing = threading.Lock()
plugins = {}
channels = {}


def say(event, **fields):
    with printing:
        print(json.dumps({"event": event, **fields}), flush=True)


def dial(endpoint):
    path = os.path.join(DIRECTORY, endpoint)
    name = "localhost" if AUTHORITY == "localhost" else path
    channel = grpc.insecure_channel("unix:" + path, options=[("grpc.default_authority", name)])
    return channel, services.DevicePluginStub(channel)


def watch(resource, stub):
    try:
        for answer in stub.ListAndWatch(api.Empty()):
            devices = [
                {"id": d.ID, "health": d.health, "nodes": [n.ID for n in d.topology.nodes]}
                for d in answer.devices
            ]
            say("devices", resource=resource, devices=devices)
        say("ended", resource=resource, code="OK")
    except grpc.RpcError as error:
        say("ended", resource=resource, code=error.code().name)


class Registration(services.RegistrationServicer):
    def __init__(self):
        self.refusals = int(REFUSALS)

    def Register(self, request, context):
        if self.refusals > 0:
            self.refusals -= 1
            say("refused", resource=request.resource_name)
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        if request.version != "v1beta1":
            context.abort(grpc.StatusCode.UNKNOWN, "unsupported version")
        channel, stub = dial(request.endpoint)
        try:
            grpc.channel_ready_future(channel).result(timeout=10)
            options = stub.GetDevicePluginOptions(api.Empty(), timeout=10)
        except (grpc.FutureTimeoutError, grpc.RpcError) as error:
            say("unreachable", resource=request.resource_name, cause=repr(error))
            context.abort(grpc.StatusCode.UNKNOWN, "failed to dial device plugin")
        plugins[request.resource_name] = stub
        channels[request.resource_name] = channel
        say(
            "registered",
            resource=request.resource_name,
            endpoint=request.endpoint,
            preferred=options.get_preferred_allocation_available and request.options.get_preferred_allocation_available,
            pre_start=options.pre_start_required,
        )
        threading.Thread(target=watch, args=(request.resource_name, stub), daemon=True).start()
        return api.Empty()


def ids(text):
    return [] if text == "-" else text.split(",")


def allocate(stub, containers):
    requests = [api.ContainerAllocateRequest(devices_ids=container) for container in containers]
    return stub.Allocate(api.AllocateRequest(container_requests=requests), timeout=10)


def obey(words):
    command, stub = words[0], plugins[words[1]]
    if command == "allocate":
        answer = allocate(stub, [ids(container) for container in words[2:]])
        containers = [
            {
                "envs": dict(c.envs),
                "devices": [[d.container_path, d.host_path, d.permissions] for d in c.devices],
                "rest": len(c.mounts) + len(c.annotations) + len(c.cdi_devices),
            }
            for c in answer.container_responses
        ]
        say("allocated", containers=containers)
    elif command == "prefer":
        wish = api.ContainerPreferredAllocationRequest(
            allocation_size=int(words[2]),
            available_deviceIDs=ids(words[3]),
            must_include_deviceIDs=ids(words[4]),
        )
        answer = stub.GetPreferredAllocation(api.PreferredAllocationRequest(container_requests=[wish]), timeout=10)
        say("preferred", ids=list(answer.container_responses[0].deviceIDs))
    elif command == "many":
        begin = time.monotonic()
        for _ in range(int(words[2])):
            allocate(stub, [ids(words[3])])
        say("done", calls=int(words[2]), seconds=time.monotonic() - begin)
    elif command == "hangup":
        channels[words[1]].close()
    elif command == "huge":
        allocate(stub, [["x" * 60] * int(words[2])])
        say("allocated", containers=[])


def main():
    for name in os.listdir(DIRECTORY):
        if EMPTIES == "true" or name == "kubelet.sock":
            os.unlink(os.path.join(DIRECTORY, name))
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    services.add_RegistrationServicer_to_server(Registration(), server)
    server.add_insecure_port("unix:" + os.path.join(DIRECTORY, "kubelet.sock"))
    server.start()
    say("listening")
    for line in sys.stdin:
        try:
            obey(line.split())
        except grpc.RpcError as error:
            say("failed", code=error.code().name, text=error.details())
    server.stop(0)


main()
