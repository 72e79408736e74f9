// The interface's bundle, fetched once from the Jupyter server when the first surface is drawn.
import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

/** What the bundle gives; types only, its code stays out of this shell. */
export type Bundle = typeof import('../ui/index');

declare const FAL_UI_HASH: string;

let loading: Promise<Bundle> | null = null;

/** Return the bundle; a failed load may be tried again. */
export function loadBundle(): Promise<Bundle> {
  if (!loading) {
    const base = ServerConnection.makeSettings().baseUrl;
    const url = new URL(URLExt.join(base, 'fal/static/fal-ui.js'), location.href);
    url.searchParams.set('v', FAL_UI_HASH);
    loading = import(/* webpackIgnore: true */ url.href) as Promise<Bundle>;
    loading.catch(() => {
      loading = null;
    });
  }
  return loading;
}
