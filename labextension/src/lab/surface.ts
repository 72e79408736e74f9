// A Lumino widget around one surface of the bundle.
import { Widget } from '@lumino/widgets';
import type { Mounted } from '../ui/host';
import { loadBundle, type Bundle } from './bundle';

/** Draws a surface once the bundle is there, and takes it down with the widget. */
export class Surface<P> extends Widget {
  private mounted: Promise<Mounted<P>>;
  private readonly place = document.createElement('div');

  constructor(draw: (bundle: Bundle, host: HTMLElement) => Mounted<P>) {
    super();
    this.addClass('fal-surface');
    this.node.append(this.place);
    this.mounted = loadBundle().then(bundle => draw(bundle, this.place));
    this.mounted.catch(error => this.explain(error));
  }

  /** Fill the widget's height, with the surface's own scrolling. */
  fill(): this {
    this.node.style.overflow = 'auto';
    this.place.style.height = '100%';
    return this;
  }

  /** Keep away from the edges, as a document does. */
  pad(): this {
    this.node.style.overflow = 'auto';
    this.node.style.padding = '12px';
    return this;
  }

  dispose(): void {
    this.mounted.then(
      mounted => mounted.unmount(),
      () => undefined
    );
    super.dispose();
  }

  private explain(error: unknown): void {
    this.place.textContent = `The interface could not be loaded from the Jupyter server: ${String(error)}. Is the server extension fal_notebook.labserver enabled?`;
  }
}
