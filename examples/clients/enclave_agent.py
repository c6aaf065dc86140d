"""A client of the agent's socket in an enclave, without any package.

    import enclave_agent
    document = enclave_agent.attest(user_data=b"release 7")
    enclave_agent.extend(17, b"configuration"); enclave_agent.lock(17)
    key = enclave_agent.random(32)

Run as a program it prints a document in base64. What may be asked is described
in docs/attestation.md, section 8. Never let a client of yours choose user_data
or public_key: the enclave would vouch for them.
"""

import base64
import http.client
import json
import socket
import sys

SOCKET = "/run/enclave/agent.sock"


class Refused(Exception):
    """The agent's answer was an error; `code` is stable."""

    def __init__(self, status, answer):
        super().__init__(f"{status}: {answer['error']}")
        self.code = answer["code"]


class _Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(SOCKET)


def ask(method, path, **fields):
    """One request. Fields are bytes; those that are None are left out."""
    body = {name: value.hex() for name, value in fields.items() if value is not None}
    connection = _Connection("agent", timeout=30)
    try:
        connection.request(method, path, json.dumps(body) if method == "POST" else None)
        response = connection.getresponse()
        answer = json.load(response)
    finally:
        connection.close()
    if response.status != 200:
        raise Refused(response.status, answer)
    return answer


def attest(user_data=None, nonce=None, public_key=None):
    """An attestation document (COSE_Sign1 bytes)."""
    fields = {"user_data": user_data, "nonce": nonce, "public_key": public_key}
    return base64.b64decode(ask("POST", "/v1/attestation", **fields)["document"])


def pcr(index):
    """Value of a register, and whether it is locked."""
    answer = ask("GET", f"/v1/pcrs/{index}")
    return bytes.fromhex(answer["value"]), answer["locked"]


def extend(index, data):
    """SHA-384(value, data) becomes the value of register 16 to 31, which is returned."""
    return bytes.fromhex(ask("POST", f"/v1/pcrs/{index}/extend", data=data)["value"])


def lock(index):
    """Nobody can extend register 16 to 31 any more."""
    ask("POST", f"/v1/pcrs/{index}/lock")


def random(count):
    """Random bytes of the security module, 1 to 4096."""
    return bytes.fromhex(ask("GET", f"/v1/random?bytes={count}")["random"])


if __name__ == "__main__":
    print(base64.b64encode(attest(*(text.encode() for text in sys.argv[1:2]))).decode())
