// The renderer of our output type: the card, drawn from live state and updated in place.
import type { IRenderMime } from '@jupyterlab/rendermime-interfaces';
import { Widget } from '@lumino/widgets';
import { MIME_TYPE } from '../api/wire.gen';
import type { CardProps, Host, Mounted } from '../ui/index';
import { loadBundle, type Bundle } from './bundle';

class CardRenderer extends Widget implements IRenderMime.IRenderer {
  private mounted: Mounted<CardProps> | null = null;
  private readonly place = document.createElement('div');

  constructor(private readonly hostOf: (bundle: Bundle) => Host) {
    super();
    this.addClass('fal-card-output');
    this.node.style.padding = '4px 0';
    this.node.append(this.place);
  }

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    let bundle: Bundle;
    try {
      bundle = await loadBundle();
    } catch (error) {
      this.place.textContent = `The card could not be loaded from the Jupyter server: ${String(error)}`;
      return;
    }
    if (this.isDisposed) {
      return;
    }
    const props = { host: this.hostOf(bundle), data: model.data[MIME_TYPE] };
    if (this.mounted) {
      this.mounted.update(props);
    } else {
      this.place.textContent = '';
      this.mounted = bundle.mountStatusCard(this.place, props);
    }
  }

  dispose(): void {
    this.mounted?.unmount();
    super.dispose();
  }
}

/** Safe: it runs nothing by itself and draws text as text, also in a notebook that is not trusted. */
export function cardFactory(hostOf: (bundle: Bundle) => Host): IRenderMime.IRendererFactory {
  return {
    safe: true,
    mimeTypes: [MIME_TYPE],
    defaultRank: -20,
    createRenderer: () => new CardRenderer(hostOf)
  };
}
