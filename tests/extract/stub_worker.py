"""A worker of an extraction that is told how to end: ``python -m tests.extract.stub_worker``, without torch."""

import json
import os
import signal
import sys

from losa_cache.children import end_with_parent, teller

COUNTS = ("elsewhere", "bytes", "waited_decode", "waited_write", "forward", "encode", "copy", "write")

end_with_parent()
tell = teller()
options = json.loads(sys.argv[1])["options"]
end = json.loads(os.environ["ENDS"])[int(os.environ.get("CUDA_VISIBLE_DEVICES", "0"))]
if "images" in end:
    tell({"total": 20, "images": end["images"]} | dict.fromkeys(COUNTS, 0))
said = f"device {options['device']}, {options['workers']} threads, part {options['part']}"
for line in (said, *end.get("says", ())):
    sys.stderr.write(f"{line}\n")
if "cache" in end:
    tell({"cache": end["cache"]})
if end["code"] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(end["code"])
