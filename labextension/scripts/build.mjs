// Builds fal-ui.js (cards, playground, panel), the JupyterLab extension around it, or the tests' bundles.
import { build } from 'esbuild';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const bundle = join(root, '..', 'fal_notebook', 'static', 'fal-ui.js');

const shared = {
  bundle: true,
  format: 'esm',
  target: 'es2022',
  jsx: 'automatic',
  jsxImportSource: 'preact',
  loader: { '.css': 'text' },
  logLevel: 'warning',
  absWorkingDir: root
};

async function buildInterface() {
  mkdirSync(dirname(bundle), { recursive: true });
  await build({ ...shared, entryPoints: ['src/ui/index.ts'], outfile: bundle, minify: true, legalComments: 'none' });
}

/** The extension asks for the bundle by its hash, so that a browser never keeps an older one. */
async function buildExtension() {
  const hash = createHash('sha256').update(readFileSync(bundle)).digest('hex').slice(0, 12);
  await build({
    ...shared,
    entryPoints: ['src/index.ts'],
    outfile: join(root, 'lib', 'index.js'),
    external: ['@jupyterlab/*', '@lumino/*'],
    define: { FAL_UI_HASH: JSON.stringify(hash) }
  });
  rmSync(join(root, '..', 'fal_notebook', 'labextension'), { recursive: true, force: true });
  const builder = join(root, 'node_modules', '@jupyter', 'builder', 'lib', 'build-labextension.js');
  const core = join(root, 'node_modules', '@jupyterlab', 'core-meta', 'core.package.json');
  execFileSync(process.execPath, [builder, '--core-package-file', core, root], { cwd: root, stdio: 'inherit' });
}

async function buildTests() {
  const names = readdirSync(join(root, 'tests')).filter(name => name.endsWith('.test.ts'));
  await build({
    ...shared,
    platform: 'node',
    entryPoints: names.map(name => join('tests', name)),
    outdir: join(root, 'build', 'tests'),
    outExtension: { '.js': '.mjs' }
  });
}

if (process.argv.includes('--tests')) {
  await buildTests();
} else {
  await buildInterface();
  await buildExtension();
}
