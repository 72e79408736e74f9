// Frames out of the text of a Python traceback.

/** One frame, the outermost first. */
export interface Frame {
  place: string;
  line: number;
  name: string;
  code: string | null;
  /** From a cell or a file beside the notebook, not from an installed package. */
  isOwn: boolean;
}

const HEAD = /^\s*File "(.+?)", line (\d+)(?:, in (.+))?$/;
const CELL_HEAD = /^\s*(?:File|Cell) (In \[\d+\]),? line (\d+)(?:, in (.+))?$/;
const LIBRARY = /site-packages|dist-packages|\/lib\/python\d|^<frozen|fal_notebook\/|\/runtime\/|lib64\/python/;

/** Return the frames; none where the text is no traceback. */
export function readTraceback(text: string): Frame[] {
  const frames: Frame[] = [];
  const lines = text.split('\n');
  lines.forEach((line, index) => {
    const match = HEAD.exec(line) ?? CELL_HEAD.exec(line);
    if (!match) {
      return;
    }
    const next = lines[index + 1] ?? '';
    const code = /^\s{4,}\S/.test(next) && !HEAD.test(next) ? next.replace(/^ {4}/, '') : null;
    const file = String(match[1]);
    frames.push({ place: placeOf(file), line: Number(match[2]), name: match[3] ?? '<module>', code, isOwn: !LIBRARY.test(file) });
  });
  return frames;
}

function placeOf(file: string): string {
  const cell = /In \[\d+\]/.exec(file)?.[0];
  if (cell) {
    return cell;
  }
  return /ipykernel_\d+\//.test(file) ? 'notebook cell' : file;
}
