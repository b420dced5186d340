// Many streams of @discordjs/voice: its own AudioPlayer, VoiceConnection, Networking and VoiceUDPSocket, with no gateway behind them.
import { createRequire } from 'node:module';
import { Readable } from 'node:stream';
import { randomBytes } from 'node:crypto';
import readline from 'node:readline';

const voice = createRequire(import.meta.url)('@discordjs/voice');
const { port, streams, size } = JSON.parse(process.argv[2]);
const frame = Buffer.concat([Buffer.from([0xfc]), randomBytes(size - 1)]);

class Endless extends Readable {
  constructor() {
    super({ objectMode: true });
  }
  _read() {
    this.push(frame);
  }
}

for (let number = 1; number <= streams; number++) {
  const connection = voice.joinVoiceChannel({
    guildId: String(number),
    channelId: String(number),
    adapterCreator: () => ({ sendPayload: () => true, destroy: () => {} }),
  });
  const networking = Object.create(voice.Networking.prototype);
  const key = Buffer.alloc(32);
  key.writeUInt32BE(number, 28);
  networking._state = {
    code: 4, // Ready
    ws: { sendPacket: () => {} },
    udp: new voice.VoiceUDPSocket({ ip: '127.0.0.1', port }),
    connectionData: {
      encryptionMode: 'aead_aes256_gcm_rtpsize', // the first of its own list
      secretKey: key,
      ssrc: number,
      sequence: 0,
      timestamp: 0,
      nonce: 0,
      nonceBuffer: Buffer.alloc(12),
      speaking: true,
      packetsPlayed: 0,
    },
  };
  connection._state = { status: 'ready', networking, adapter: connection._state.adapter };
  const player = voice.createAudioPlayer();
  connection.subscribe(player);
  player.play(voice.createAudioResource(new Endless(), { inputType: voice.StreamType.Opus }));
}
console.log('ready');
const lines = readline.createInterface({ input: process.stdin });
lines.on('line', () => console.log('{}'));
lines.on('close', () => process.exit(0));
