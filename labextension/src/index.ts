// The JupyterLab extension: a thin shell around the bundle. Renderer, side panel, playground tabs, commands.
import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette, MainAreaWidget } from '@jupyterlab/apputils';
import { IRenderMimeRegistry } from '@jupyterlab/rendermime';
import { LabIcon } from '@jupyterlab/ui-components';
import type { Host } from './ui/host';
import type { Bundle } from './lab/bundle';
import { labHost } from './lab/host';
import { cardFactory } from './lab/renderer';
import { Surface } from './lab/surface';

const PANEL_ID = 'fal-notebook-panel';
const OPEN_PANEL = 'fal-notebook:open-panel';

const icon = new LabIcon({
  name: 'fal-notebook:app',
  svgstr:
    '<svg xmlns="http://www.w3.org/2000/svg" width="16" height="16" viewBox="0 0 16 16"><path class="jp-icon3" fill="none" stroke="#616161" stroke-width="1.4" stroke-linejoin="round" d="M8 1.8l5.6 3.1v6.2L8 14.2l-5.6-3.1V4.9zM2.6 5L8 8l5.4-3M8 8v6"/></svg>'
});

/** Opens one tab for each app; asking again brings it to the front. */
function playgroundOpener(app: JupyterFrontEnd, hostOf: (bundle: Bundle) => Host) {
  return (instance: string, alias: string): void => {
    const id = `fal-notebook-playground-${instance}-${alias}`;
    const open = [...app.shell.widgets('main')].find(widget => widget.id === id);
    if (open) {
      app.shell.activateById(id);
      return;
    }
    const surface = new Surface((bundle, place) => bundle.mountPlayground(place, { host: hostOf(bundle), instance, alias })).pad();
    const tab = new MainAreaWidget({ content: surface });
    tab.id = id;
    tab.title.label = alias;
    tab.title.caption = `Playground of ${alias}`;
    tab.title.icon = icon;
    tab.title.closable = true;
    app.shell.add(tab, 'main');
    app.shell.activateById(id);
  };
}

function addPanel(app: JupyterFrontEnd, hostOf: (bundle: Bundle) => Host): void {
  const panel = new Surface((bundle, place) => bundle.mountPanel(place, { host: hostOf(bundle), instance: 'local' })).fill();
  panel.id = PANEL_ID;
  panel.title.caption = 'fal';
  panel.title.icon = icon;
  app.shell.add(panel, 'right', { rank: 900 });
}

const plugin: JupyterFrontEndPlugin<void> = {
  id: '@fal-notebook/labextension:plugin',
  description: 'Cards, playgrounds and the side panel of fal-notebook.',
  autoStart: true,
  requires: [IRenderMimeRegistry],
  optional: [ICommandPalette],
  activate: (app: JupyterFrontEnd, rendermime: IRenderMimeRegistry, palette: ICommandPalette | null) => {
    const openPlayground = playgroundOpener(app, bundle => hostOf(bundle));
    const hostOf = (bundle: Bundle): Host => labHost(app, bundle, openPlayground);
    rendermime.addFactory(cardFactory(hostOf), -20);
    addPanel(app, hostOf);
    app.commands.addCommand(OPEN_PANEL, {
      label: 'Show apps',
      caption: 'Show the fal side panel',
      icon,
      execute: () => app.shell.activateById(PANEL_ID)
    });
    palette?.addItem({ command: OPEN_PANEL, category: 'fal' });
  }
};

export default plugin;
