"""voicegw inside bot frameworks: `await channel.connect(cls=voicegw.frameworks.discord_py.VoiceClient)`.

No framework is a dependency, and none needs its own voice extra. One module a framework; each says what is missing.
"""
