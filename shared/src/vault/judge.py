"""Opens and makes the vault's seals by PyPI's cryptography, from docs/keys.md and nothing else.

In: JSON [{"keys": {"1": base64}, "tenant": int, "user": str, "provider": str, "sealed": base64, "make": str}, ...]
Out: JSON [{"opened": str, "made": base64}, ...]
"""
import base64, json, os, struct, sys
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def bound(layer, version, row):
    out = b"offstage.vault" + bytes([layer, 1, version]) + struct.pack(">i", row["tenant"])
    for name in (row["user"].encode(), row["provider"].encode()):
        out += struct.pack(">I", len(name)) + name
    return out


def opened(row):
    sealed = base64.b64decode(row["sealed"])
    assert sealed[0] == 1
    version = sealed[1]
    wrapping = AESGCM(base64.b64decode(row["keys"][str(version)]))
    data_key = wrapping.decrypt(sealed[2:14], sealed[14:62], bound(1, version, row))
    return AESGCM(data_key).decrypt(sealed[62:74], sealed[74:], bound(2, 0, row)).decode()


def made(row):
    version = max(int(version) for version in row["keys"])
    data_key, first, second = os.urandom(32), os.urandom(12), os.urandom(12)
    wrapped = AESGCM(base64.b64decode(row["keys"][str(version)])).encrypt(first, data_key, bound(1, version, row))
    secret = AESGCM(data_key).encrypt(second, row["make"].encode(), bound(2, 0, row))
    return base64.b64encode(bytes([1, version]) + first + wrapped + second + secret).decode()


print(json.dumps([{"opened": opened(row), "made": made(row)} for row in json.load(sys.stdin)]))
