// What JupyterLab does for a surface: reach backends through its server, open tabs, go to cells.
import type { JupyterFrontEnd } from '@jupyterlab/application';
import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';
import type { Transport } from '../api/transport';
import type { CellPlace, Host } from '../ui/host';
import type { Bundle } from './bundle';

// With its usual `no-store`, JupyterLab writes the time into every query, and so into what an app is asked.
const settings = ServerConnection.makeSettings({ init: { cache: 'reload', credentials: 'same-origin' } });
const transports = new Map<string, Promise<Transport | null>>();

function address(...parts: string[]): string {
  return URLExt.join(settings.baseUrl, 'fal', ...parts);
}

/** Requests carry Jupyter's own token and XSRF header; the backend's key is added by the server. */
function ask(url: string, init: RequestInit): Promise<Response> {
  return ServerConnection.makeRequest(url, init, settings);
}

function socketAddress(instance: string, path: string): string {
  const url = URLExt.join(settings.wsUrl, 'fal', 'ws', encodeURIComponent(instance), path);
  return settings.appendToken && settings.token ? `${url}?token=${encodeURIComponent(settings.token)}` : url;
}

async function connect(bundle: Bundle, instance: string): Promise<Transport | null> {
  const response = await ask(address('instances', encodeURIComponent(instance)), { method: 'GET' });
  if (!response.ok) {
    return null;
  }
  const start = async (): Promise<void> => {
    const started = await ask(address('instances', encodeURIComponent(instance), 'start'), { method: 'POST' });
    if (!started.ok) {
      const body = (await started.json()) as { error?: { message?: string } };
      throw new Error(body.error?.message ?? started.statusText);
    }
  };
  const socket = (path: string): WebSocket => new settings.WebSocket(socketAddress(instance, path));
  return new bundle.HttpTransport(address('i', encodeURIComponent(instance)) + '/', ask, { start, socket, keepsFiles: true });
}

function transportOf(bundle: Bundle, instance: string): Promise<Transport | null> {
  const found = transports.get(instance) ?? connect(bundle, instance);
  transports.set(instance, found);
  const forget = (): void => void transports.delete(instance);
  found.then(transport => transport ?? forget(), forget);
  return found.catch(() => null);
}

/** The parts of a notebook panel that are used here, by shape, so that its package is not needed. */
interface CellLike {
  model: { id: string; sharedModel: { setSource(text: string): void } };
  editor: { setCursorPosition(place: { line: number; column: number }): void; focus(): void } | null;
}
interface NotebookLike {
  widgets: CellLike[];
  activeCellIndex: number;
  activeCell: CellLike | null;
  scrollToItem?(index: number): Promise<void>;
}

function notebookOf(app: JupyterFrontEnd): NotebookLike | null {
  const content = (app.shell.currentWidget as { content?: Partial<NotebookLike> } | null)?.content;
  return content?.widgets && 'activeCellIndex' in content ? (content as NotebookLike) : null;
}

async function goTo(app: JupyterFrontEnd, place: CellPlace): Promise<void> {
  const notebook = notebookOf(app);
  const index = notebook?.widgets.findIndex(cell => cell.model.id === place.cell_id) ?? -1;
  if (!notebook || index < 0) {
    return;
  }
  notebook.activeCellIndex = index;
  await notebook.scrollToItem?.(index);
  const editor = notebook.widgets[index]?.editor;
  if (editor && place.line !== null) {
    editor.setCursorPosition({ line: place.line - 1, column: 0 });
    editor.focus();
  }
}

async function insertCell(app: JupyterFrontEnd, text: string): Promise<void> {
  if (notebookOf(app)) {
    await app.commands.execute('notebook:insert-cell-below');
    notebookOf(app)?.activeCell?.model.sharedModel.setSource(text);
  }
}

/** Return the host for surfaces in this JupyterLab. */
export function labHost(app: JupyterFrontEnd, bundle: Bundle, openPlayground: (instance: string, alias: string) => void): Host {
  return {
    transport: instance => transportOf(bundle, instance),
    openPlayground,
    goTo: place => void goTo(app, place),
    insertCell: text => void insertCell(app, text)
  };
}
