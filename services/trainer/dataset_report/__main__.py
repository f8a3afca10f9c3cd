"""`python -m services.trainer.dataset_report JOB_FOLDER`: write the report that the job asks for into the store."""

import json
import sys
from pathlib import Path

from services.trainer.dataset_report.report import make_report
from services.trainer.dataset_report.spec import ReportSpec
from services.trainer.failure import recorded
from services.trainer.files import write_whole
from services.trainer.folder import JobFolder
from services.trainer.lease_file import end_with_lease
from services.trainer.room import when_there_is_room

REPORT_FILE = "report.json"  # as the registry expects it


def main(job_folder: str) -> None:
    folder = JobFolder(Path(job_folder))
    spec = ReportSpec.load(folder.run)
    end_with_lease(folder.lease, spec.fencing_token)
    store = spec.store()
    with recorded(folder.failure(spec.fencing_token)):
        report = json.dumps(make_report(spec, store), ensure_ascii=False).encode()
        digest = when_there_is_room(lambda: store.write_bytes(report))
        result = json.dumps([[REPORT_FILE, digest]])
        when_there_is_room(lambda: write_whole(folder.result(spec.fencing_token), result))


if __name__ == "__main__":
    main(sys.argv[1])
