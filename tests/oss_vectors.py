"""Signatures by Alibaba's own library, to compare ours with.

The library brings some others along, so the tests use what it once said, tests/data/oss/put.json:

    python -m venv /tmp/oss && /tmp/oss/bin/pip install alibabacloud-oss-v2==1.4.1
    /tmp/oss/bin/python tests/oss_vectors.py > tests/data/oss/put.json
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import product
from typing import Any

KEYS = (
    "00000000-0000-4000-8000-000000000001/88888888-8888-4888-8888-888888888888_cat.png",
    "a/b c+d&e=f?g#h%20(1)'!*~.pdf",
    "用户/猫咪图片 é.txt",
)
PLACES = (("example-bucket", "ap-southeast-1"), ("b0", "cn-hangzhou"))
TYPES = ("image/png", "text/plain", "application/pdf")
TIMES = (1_772_622_850, 1_704_067_199, 4_102_444_800)


def vector(key: str, place: tuple[str, str], media_type: str, now: int) -> dict[str, Any]:
    """Return one call, and the header that it is signed with."""
    from alibabacloud_oss_v2 import types  # type: ignore[import-not-found]
    from alibabacloud_oss_v2.signer.v4 import SignerV4  # type: ignore[import-not-found]

    bucket, region = place
    request = types.HttpRequest("PUT", "https://h/", headers={"Content-Type": media_type})
    context = types.SigningContext(
        product="oss",
        region=region,
        bucket=bucket,
        key=key,
        request=request,
        credentials=types.Credentials("STS.EXAMPLE", "EXAMPLE-secret/+", "EXAMPLE-token+/="),
        signing_time=datetime.fromtimestamp(now, UTC),
    )
    SignerV4().sign(context)
    return {
        "bucket": bucket,
        "region": region,
        "key": key,
        "media_type": media_type,
        "now": now,
        "x-oss-date": request.headers["x-oss-date"],
        "authorization": request.headers["Authorization"],
    }


if __name__ == "__main__":
    cases = zip(product(KEYS, PLACES), [*TYPES, *TYPES], [*TIMES, *TIMES], strict=True)
    vectors = [vector(key, place, type, now) for (key, place), type, now in cases]
    print(json.dumps(vectors, ensure_ascii=False, indent=1))
