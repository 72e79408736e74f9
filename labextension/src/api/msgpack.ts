// MessagePack, as realtime endpoints speak it: JSON's values and bytes. Source: the MessagePack specification.

/** Return a value as bytes; numbers that are whole and exact are written as integers. */
export function pack(value: unknown): Uint8Array<ArrayBuffer> {
  const out: number[] = [];
  write(value, out);
  return Uint8Array.from(out);
}

const text = new TextEncoder();

function write(value: unknown, out: number[]): void {
  if (value === null || value === undefined) {
    out.push(0xc0);
  } else if (typeof value === 'boolean') {
    out.push(value ? 0xc3 : 0xc2);
  } else if (typeof value === 'number') {
    writeNumber(value, out);
  } else if (typeof value === 'string') {
    const bytes = text.encode(value);
    writeHead(bytes.length, out, [0xa0, 32], [0xd9, 0xda, 0xdb]);
    append(bytes, out);
  } else if (value instanceof Uint8Array) {
    writeHead(value.length, out, null, [0xc4, 0xc5, 0xc6]);
    append(value, out);
  } else if (Array.isArray(value)) {
    writeHead(value.length, out, [0x90, 16], [null, 0xdc, 0xdd]);
    value.forEach(item => write(item, out));
  } else {
    const members = Object.entries(value).filter(([, member]) => member !== undefined);
    writeHead(members.length, out, [0x80, 16], [null, 0xde, 0xdf]);
    for (const [name, member] of members) {
      write(name, out);
      write(member, out);
    }
  }
}

function append(bytes: Uint8Array, out: number[]): void {
  for (const byte of bytes) {
    out.push(byte);
  }
}

/** Write kind and length: within the first byte where that holds it, else in 1, 2 or 4 bytes after it. */
function writeHead(length: number, out: number[], short: [number, number] | null, long: (number | null)[]): void {
  if (short && length < short[1]) {
    out.push(short[0] | length);
    return;
  }
  const power = length < 0x100 && long[0] !== null ? 0 : length < 0x10000 ? 1 : 2;
  out.push(long[power] as number);
  big(length, 2 ** power, out);
}

function big(value: number, width: number, out: number[]): void {
  for (let at = width - 1; at >= 0; at--) {
    out.push(Math.floor(value / 256 ** at) % 256);
  }
}

function writeNumber(value: number, out: number[]): void {
  if (!Number.isSafeInteger(value) || Object.is(value, -0)) {
    const bytes = new DataView(new ArrayBuffer(8));
    bytes.setFloat64(0, value);
    out.push(0xcb);
    append(new Uint8Array(bytes.buffer), out);
  } else if (value >= 0) {
    writeUnsigned(value, out);
  } else {
    writeNegative(value, out);
  }
}

function writeUnsigned(value: number, out: number[]): void {
  if (value < 0x80) {
    out.push(value);
    return;
  }
  const power = value < 0x100 ? 0 : value < 0x10000 ? 1 : value < 0x100000000 ? 2 : 3;
  out.push(0xcc + power);
  big(value, 2 ** power, out);
}

function writeNegative(value: number, out: number[]): void {
  if (value >= -32) {
    out.push(value + 256);
    return;
  }
  const bytes = new DataView(new ArrayBuffer(8));
  bytes.setBigInt64(0, BigInt(value));
  const width = value >= -0x80 ? 1 : value >= -0x8000 ? 2 : value >= -0x80000000 ? 4 : 8;
  out.push(0xd0 + Math.log2(width));
  append(new Uint8Array(bytes.buffer, 8 - width), out);
}

/** Return the one value in some bytes; bytes within it stay Uint8Array. Throws RangeError at their early end. */
export function unpack(bytes: Uint8Array): unknown {
  return new Reader(bytes).value();
}

class Reader {
  private at = 0;
  private readonly view: DataView;

  constructor(private readonly bytes: Uint8Array) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  value(): unknown {
    const kind = this.view.getUint8(this.at++);
    if (kind < 0x80) {
      return kind;
    }
    if (kind >= 0xe0) {
      return kind - 256;
    }
    if (kind < 0x90) {
      return this.members(kind & 0x0f);
    }
    if (kind < 0xa0) {
      return this.items(kind & 0x0f);
    }
    return kind < 0xc0 ? this.text(kind & 0x1f) : this.marked(kind);
  }

  /** Read what follows one of the kinds from 0xc0 to 0xdf. */
  private marked(kind: number): unknown {
    if (kind <= 0xc3) {
      return kind === 0xc0 ? null : kind === 0xc3;
    }
    if (kind <= 0xc6) {
      return this.take(this.unsigned(2 ** (kind - 0xc4)));
    }
    if (kind <= 0xc9) {
      return this.extension(this.unsigned(2 ** (kind - 0xc7)));
    }
    if (kind <= 0xcb) {
      return this.float(kind === 0xca ? 4 : 8);
    }
    if (kind <= 0xcf) {
      return this.unsigned(2 ** (kind - 0xcc));
    }
    if (kind <= 0xd3) {
      return this.signed(2 ** (kind - 0xd0));
    }
    if (kind <= 0xd8) {
      return this.extension(2 ** (kind - 0xd4));
    }
    if (kind <= 0xdb) {
      return this.text(this.unsigned(2 ** (kind - 0xd9)));
    }
    const length = this.unsigned(kind % 2 ? 4 : 2);
    return kind <= 0xdd ? this.items(length) : this.members(length);
  }

  private skip(width: number): number {
    const start = this.at;
    this.at += width;
    return start;
  }

  private unsigned(width: number): number {
    const start = this.skip(width);
    switch (width) {
      case 1:
        return this.view.getUint8(start);
      case 2:
        return this.view.getUint16(start);
      case 4:
        return this.view.getUint32(start);
      default:
        return Number(this.view.getBigUint64(start));
    }
  }

  private signed(width: number): number {
    const start = this.skip(width);
    switch (width) {
      case 1:
        return this.view.getInt8(start);
      case 2:
        return this.view.getInt16(start);
      case 4:
        return this.view.getInt32(start);
      default:
        return Number(this.view.getBigInt64(start));
    }
  }

  private float(width: number): number {
    const start = this.skip(width);
    return width === 4 ? this.view.getFloat32(start) : this.view.getFloat64(start);
  }

  private take(length: number): Uint8Array {
    const start = this.skip(length);
    if (this.at > this.bytes.length) {
      throw new RangeError('the message ends early');
    }
    return this.bytes.slice(start, this.at);
  }

  private text(length: number): string {
    return new TextDecoder().decode(this.take(length));
  }

  /** A type of the sender's own: its bytes, without their meaning. */
  private extension(length: number): Uint8Array {
    this.skip(1);
    return this.take(length);
  }

  private items(length: number): unknown[] {
    return Array.from({ length }, () => this.value());
  }

  private members(length: number): Record<string, unknown> {
    const found: Record<string, unknown> = {};
    for (let number = 0; number < length; number++) {
      const name = String(this.value());
      Object.defineProperty(found, name, { value: this.value(), enumerable: true, configurable: true, writable: true });
    }
    return found;
  }
}
