// A Lumino widget around one surface of the bundle, which follows its backend only while it can be seen.
import { Widget } from '@lumino/widgets';
import type { Mounted } from '../ui/host';
import { loadBundle, type Bundle } from './bundle';

/** Draws a surface when the widget is shown, and takes it down when it is hidden or disposed. */
export class Surface<P> extends Widget {
  private mounted: Promise<Mounted<P>> | null = null;
  private readonly place = document.createElement('div');

  constructor(private readonly draw: (bundle: Bundle, host: HTMLElement) => Mounted<P>) {
    super();
    this.addClass('fal-surface');
    this.node.append(this.place);
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
    this.takeDown();
    super.dispose();
  }

  protected onAfterAttach(): void {
    if (this.isVisible) {
      this.putUp();
    }
  }

  protected onAfterShow(): void {
    this.putUp();
  }

  protected onBeforeHide(): void {
    this.takeDown();
  }

  private putUp(): void {
    if (!this.mounted) {
      this.mounted = loadBundle().then(bundle => this.draw(bundle, this.place));
      this.mounted.catch(error => {
        this.mounted = null;
        this.explain(error);
      });
    }
  }

  private takeDown(): void {
    this.mounted?.then(
      mounted => mounted.unmount(),
      () => undefined
    );
    this.mounted = null;
  }

  private explain(error: unknown): void {
    this.place.textContent = `The interface could not be loaded from the Jupyter server: ${String(error)}. Is the server extension fal_notebook.labserver enabled?`;
  }
}
