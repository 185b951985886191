"""Runs notebooks from a clean kernel in an empty folder, and saves them with what they show.

python notebooks/execute.py            # all of them
python notebooks/execute.py 02 04      # those whose names begin so
"""

import sys
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
METADATA = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"}}
SECONDS = 900  # of a cell, at most


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook as a clean kernel leaves it.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", record_timing=False, coalesce_streams=True,
                       resources={"metadata": {"path": folder}}).execute()
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    return notebook


def smaller(png: str) -> str:
    """A picture in base64, held to 256 colours: a chart loses nothing that is seen."""
    buffer = BytesIO()
    Image.open(BytesIO(b64decode(png))).convert("RGB").quantize(256).save(buffer, "PNG", optimize=True)
    return b64encode(buffer.getvalue()).decode()


def main(beginnings: list[str]) -> None:
    """Execute and save the notebooks whose names begin with one of ``beginnings``; all where there is none."""
    for path in sorted(HERE.glob("*.ipynb")):
        if path.name.startswith(tuple(beginnings) or ("",)):
            nbformat.write(executed(path), path)
            print(f"{path.name}: {path.stat().st_size // 1000} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
