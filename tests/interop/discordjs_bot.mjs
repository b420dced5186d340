// A bot of @discordjs/voice in one call: plays a tone, listens to one user, tells what it heard.
//
//   node discordjs_bot.mjs '{"endpoint", "token", "guild_id", "channel_id", "user_id", "session_id", "peer_id"}'
//
// Lines on stdout are JSON. {"event": "ready"}: connected. {"event": "done"}: encrypted, all was played, enough was
// heard. Then it stays until stdin ends, and the last line is the result. It leaves after 60 s in any case.

import { once } from 'node:events';
import { createRequire } from 'node:module';
import { Readable } from 'node:stream';

import {
  AudioPlayerStatus,
  StreamType,
  VoiceConnectionStatus,
  createAudioPlayer,
  createAudioResource,
  entersState,
  joinVoiceChannel,
} from '@discordjs/voice';

const OpusScript = createRequire(import.meta.url)('opusscript');

const RATE = 48000;
const CHANNELS = 2;
const FRAME = 960;
const HZ = 660;
const PLAYED_FRAMES = 150;
const ENOUGH_HEARD = 100;
const MEASURED_FRAMES = 50;
const LIMIT_MS = 60000;
const SILENCE = Buffer.from([0xf8, 0xff, 0xfe]);

const call = JSON.parse(process.argv[2]);
const errors = [];
const debugging = process.argv.includes('--debug');

function tell(data) {
  process.stdout.write(`${JSON.stringify(data)}\n`);
}

function toneFrames() {
  const encoder = new OpusScript(RATE, CHANNELS, OpusScript.Application.AUDIO);
  const frames = [];
  for (let index = 0; index < PLAYED_FRAMES; index += 1) {
    const pcm = Buffer.alloc(FRAME * CHANNELS * 2);
    for (let at = 0; at < FRAME; at += 1) {
      const value = Math.round(12000 * Math.sin((2 * Math.PI * HZ * (index * FRAME + at)) / RATE));
      pcm.writeInt16LE(value, at * 4);
      pcm.writeInt16LE(value, at * 4 + 2);
    }
    frames.push(encoder.encode(pcm, FRAME));
  }
  encoder.delete();
  return frames;
}

// The strongest frequency of one clean tone: from the first rise through zero to the last.
function frequencyOf(blocks) {
  const pcm = Buffer.concat(blocks);
  const rises = [];
  for (let at = 1; at < pcm.length / 4; at += 1) {
    const before = pcm.readInt16LE((at - 1) * 4);
    const after = pcm.readInt16LE(at * 4);
    if (before < 0 && after >= 0) rises.push(at - 1 + before / (before - after));
  }
  return rises.length < 2 ? 0 : ((rises.length - 1) * RATE) / (rises[rises.length - 1] - rises[0]);
}

// What the main gateway would answer to op 4.
function adapterCreator(methods) {
  return {
    sendPayload(payload) {
      const { channel_id: channelId, guild_id: guildId } = payload.d;
      process.nextTick(() => {
        methods.onVoiceStateUpdate({
          user_id: call.user_id,
          channel_id: channelId,
          guild_id: guildId,
          session_id: call.session_id,
        });
        if (channelId !== null) {
          methods.onVoiceServerUpdate({ token: call.token, guild_id: guildId, endpoint: call.endpoint });
        }
      });
      return true;
    },
    destroy() {},
  };
}

const frames = toneFrames();
const decoder = new OpusScript(RATE, CHANNELS);
const heard = { packets: 0, silence: 0, misread: 0, last: [] };
let datagram = Buffer.alloc(0);
let listening = true;
let enough;
const heardEnough = new Promise((resolve) => {
  enough = resolve;
});

// The library looks for a header extension without looking at the bit that announces one: of 65536 packets without an
// extension it takes one for a packet with it, cuts it short and cannot decrypt it.
function looksExtended(packet) {
  return packet.length > 14 && (packet[0] & 0x10) === 0 && packet.readUInt16BE(12) === 0xbede;
}

function hear(packet) {
  heard.packets += 1;
  if (!listening) return;
  try {
    const pcm = decoder.decode(packet);
    if (packet.equals(SILENCE)) {
      heard.silence += 1;
    } else {
      heard.last.push(pcm);
      if (heard.last.length > MEASURED_FRAMES) heard.last.shift();
    }
  } catch (error) {
    errors.push(`opus: ${error.message}`);
  }
  if (heard.packets - heard.silence >= ENOUGH_HEARD) enough();
}

const connection = joinVoiceChannel({
  guildId: call.guild_id,
  channelId: call.channel_id,
  selfDeaf: false,
  debug: true,
  adapterCreator,
});
const transitioned = once(connection, 'transitioned');
connection.on('error', (error) => errors.push(String(error)));
connection.on('debug', (text) => {
  if (text.includes('Failed to decrypt')) {
    if (looksExtended(datagram)) heard.misread += 1;
    else errors.push(`after ${heard.packets} packets: ${text}`);
  }
  if (debugging) process.stderr.write(`${text}\n`);
});
const states = [];
connection.on('stateChange', (_, state) => states.push(state.status));

const stream = connection.receiver.subscribe(call.peer_id);
stream.on('data', hear);
stream.on('error', (error) => errors.push(`receive: ${error.message}`));

function networking() {
  const { state } = connection;
  return state.status === VoiceConnectionStatus.Ready ? state.networking.state : {};
}

const limit = setTimeout(() => {
  process.stderr.write(`not done in time: ${JSON.stringify({ states, errors, packets: heard.packets })}\n`);
  process.exit(1);
}, LIMIT_MS);

const told = once(process.stdin.resume(), 'end');
await entersState(connection, VoiceConnectionStatus.Ready, 20000);
networking().udp.prependListener('message', (message) => {
  datagram = message;
});
tell({ event: 'ready' });

await transitioned; // it would play in the clear before
const player = createAudioPlayer();
player.on('error', (error) => errors.push(`player: ${error.message}`));
connection.subscribe(player);
player.play(
  createAudioResource(Readable.from(frames, { highWaterMark: frames.length }), { inputType: StreamType.Opus }),
);
await entersState(player, AudioPlayerStatus.Playing, 10000);
await entersState(player, AudioPlayerStatus.Idle, 30000);
await heardEnough;
const code = connection.voicePrivacyCode;
listening = false; // our user is about to leave, and its group ends
tell({ event: 'done' });

await told;
clearTimeout(limit);
const played = networking().connectionData?.packetsPlayed ?? 0;
const mode = networking().connectionData?.encryptionMode ?? '';
connection.destroy();
tell({
  ok: errors.length === 0 && Boolean(code),
  code: code ?? '',
  heard_packets: heard.packets,
  misread_packets: heard.misread,
  freq: Math.round(frequencyOf(heard.last) * 10) / 10,
  played_packets: played,
  mode,
  states,
  errors,
});
